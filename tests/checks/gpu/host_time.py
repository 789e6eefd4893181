"""A layer's time on the host."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.benchmark.measure import SWEEPS, Passes, host_times

SHAPE = (2, 64, 16, 16)


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    x = torch.randn(SHAPE, device=device, requires_grad=True)
    layers = {'BatchNorm': nn.BatchNorm2d(SHAPE[1]), 'SN': SwitchNorm2d(SHAPE[1])}
    passes = {name: Passes(m.to(device), x, torch.randn_like(x)) for name, m in layers.items()}
    runs = {(name, kind): getattr(p, kind) for name, p in passes.items() for kind in SWEEPS}
    times = host_times(runs, device, 5 if quick else 50)
    for name in layers:
        medians = {kind: 1e6 * median(times[name, kind]) for kind in SWEEPS}
        yield {'layer': name, 'shape': list(SHAPE), 'microseconds': medians}
