"""The training steps of :mod:`checks.gpu.training` under torch.compile, with BatchNorm and SN.

SyncBatchNorm is not among them: in a group of one rank torch runs it as BatchNorm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sn_mm import SwitchNorm2d

from .training import compare


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    norms = {'BatchNorm': nn.BatchNorm2d, 'SN': SwitchNorm2d}
    yield from compare(norms, device, quick, torch.compile, quick_blocks=())
