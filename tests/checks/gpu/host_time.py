"""A layer's time on the host: seconds until its work is enqueued, with no wait for it.

On a small input, so that a GPU keeps up; on a CPU this is the whole time of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.benchmark.measure import Passes, take_turns

SHAPE = (2, 64, 16, 16)
IN_A_ROW = 10  # fewer launches than wait in a GPU's queue
KINDS = ('forward', 'forward_backward', 'eval')


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    repeats = 5 if quick else 50
    x = torch.randn(SHAPE, device=device, requires_grad=True)
    layers = {'BatchNorm': nn.BatchNorm2d(SHAPE[1]), 'SN': SwitchNorm2d(SHAPE[1])}
    passes = {name: Passes(m.to(device), x, torch.randn_like(x)) for name, m in layers.items()}
    runs = {(name, kind): getattr(p, kind) for name, p in passes.items() for kind in KINDS}
    timings = {key: partial(_enqueue, enqueue, device) for key, enqueue in runs.items()}
    times = take_turns(timings, 3 + repeats)
    for name in layers:
        medians = {kind: 1e6 * median(times[name, kind][3:]) for kind in KINDS}
        yield {'layer': name, 'shape': list(SHAPE), 'microseconds': medians}


def _enqueue(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    began = perf_counter()
    for _ in range(IN_A_ROW):
        run()
    return (perf_counter() - began) / IN_A_ROW
