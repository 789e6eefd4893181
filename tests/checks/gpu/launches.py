"""The launches of a layer on the GPU, counted by PyTorch's profiler: kernels, fills and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sn_mm import SwitchNorm2d
from sn_mm.benchmark.layers import FORMATS
from sn_mm.benchmark.measure import Passes
from sn_mm.benchmark.one_rank import SynchronizedSwitchNorm2d, group_of_one

from .step import NotMeasured

SHAPE = (8, 64, 56, 56)


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    if device.type != 'cuda':
        raise NotMeasured('no GPU is visible')
    if not started(lambda: torch.ones(8, device=device)):
        raise NotMeasured("PyTorch's profiler sees no kernels on this machine")
    makers = {
        'BatchNorm': nn.BatchNorm2d,
        'SN': SwitchNorm2d,
        'SN, synchronized': SynchronizedSwitchNorm2d,
    }
    with group_of_one(device):
        for dtype in ('float32', 'bfloat16'):
            for name, memory_format in FORMATS.items():
                x = torch.randn(SHAPE, device=device).to(getattr(torch, dtype))
                x = x.to(memory_format=memory_format).requires_grad_()
                case = {'dtype': dtype, 'format': name}
                for layer, make in makers.items():
                    passes = Passes(make(SHAPE[1]).to(device), x, torch.randn_like(x))
                    yield {'layer': layer, **case, 'started': count(passes)}


def count(passes: Passes) -> dict[str, list[str]]:
    """Names of the launches of each pass, after it has run twice."""
    for _ in range(2):
        passes.forward_backward()
        passes.eval()
    y = passes.forward()
    return {
        'forward': started(passes.forward),
        'backward': started(lambda: torch.autograd.grad(y, passes.targets, passes.dy)),
        'eval': started(passes.eval),
    }


def started(run: Callable[[], Any]) -> list[str]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return [e.name for e in profiler.events() if e.device_type == DeviceType.CUDA]
