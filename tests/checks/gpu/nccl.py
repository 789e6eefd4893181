"""A synchronized layer in a process group of one rank gives what the local layer gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sn_mm import SwitchNorm2d
from sn_mm.benchmark.layers import DTYPES, FORMATS
from sn_mm.benchmark.one_rank import SynchronizedSwitchNorm2d, group_of_one

from .step import Failed

SHAPE = (4, 32, 9, 7)


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    with group_of_one(device):
        for dtype in DTYPES:
            for name, memory_format in FORMATS.items():
                x = torch.randn(SHAPE, device=device).to(getattr(torch, dtype)) + 3
                x = x.to(memory_format=memory_format)
                errors = compare(x)
                case = f'{dtype} {name}'
                yield {'case': case, 'backend': dist.get_backend(), 'errors': errors}
                # Roundings of the input's dtype, and of float32 in sums over it.
                allowed = max(4 * torch.finfo(x.dtype).eps, 1e-4)
                wrong = {key: error for key, error in errors.items() if not error <= allowed}
                if wrong:
                    raise Failed(f'{case}: synchronized and local layer differ: {wrong}')


def compare(x: Tensor) -> dict[str, float]:
    """Largest differences of outputs, gradients and statistics, in times of the largest value."""
    local = SwitchNorm2d(x.shape[1], sync=False).to(x.device)
    for parameter in local.parameters():
        nn.init.normal_(parameter)
    synchronized = SynchronizedSwitchNorm2d(x.shape[1]).to(x.device)
    synchronized.load_state_dict(copy.deepcopy(local.state_dict()))
    dy = torch.randn_like(x)
    ours, theirs = step(synchronized, x, dy), step(local, x, dy)
    return {
        name: float((ours[name].double() - t.double()).abs().max() / t.double().abs().max())
        for name, t in theirs.items()
    }


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(dy)
    grads = {f'gradient of {name}': p.grad for name, p in layer.named_parameters()}
    return {
        'output': y.detach(),
        'gradient of input': x.grad,
        **grads,
        **dict(layer.named_buffers()),
    }
