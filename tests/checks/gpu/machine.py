"""The device answers, and is this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from sn_mm.benchmark.machine import describe


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    torch.ones(8, device=device).sum().item()
    yield {**describe(device), 'SN_MM_BACKEND': os.environ.get('SN_MM_BACKEND', '')}
