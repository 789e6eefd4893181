"""Norm layers side by side on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import SwitchNorm2d
from .measure import SECONDS, measure
from .one_rank import SynchronizedBatchNorm2d, SynchronizedSwitchNorm2d, group_of_one
from .plain import PlainSwitchNorm2d
from .shapes import Case

DTYPES = ('float32', 'float16', 'bfloat16')
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
LAYERS: dict[str, Callable[[int], Any]] = {
    'BatchNorm': nn.BatchNorm2d,
    'SN': SwitchNorm2d,
    'InstanceNorm': lambda channels: nn.InstanceNorm2d(channels, affine=True),
    'plain SN': PlainSwitchNorm2d,
    'SN, synchronized': SynchronizedSwitchNorm2d,
    'SyncBatchNorm': SynchronizedBatchNorm2d,
    'GroupNorm': lambda channels: nn.GroupNorm(32, channels),
    'BatchNorm, compiled': lambda channels: torch.compile(nn.BatchNorm2d(channels), fullgraph=True),
    'SN, compiled': lambda channels: torch.compile(SwitchNorm2d(channels), fullgraph=True),
}
"""By name, what makes a layer for a number of channels. 'SyncBatchNorm' has CUDA kernels only."""
_SYNCHRONIZED = {'SN, synchronized', 'SyncBatchNorm'}


def make_layers(names: Sequence[str], x: Tensor) -> dict[str, nn.Module]:
    """The layers that take ``x`` (N, C, H, W), as mixed-precision training keeps them.

    'GroupNorm' is left out where its 32 groups do not divide C.
    """
    if any(name.endswith('compiled') for name in names):
        torch.compiler.reset()  # each input is compiled for itself
    channels = x.shape[1]
    layers = {
        name: LAYERS[name](channels).to(x.device)
        for name in names
        if name != 'GroupNorm' or channels % 32 == 0
    }
    if 'GroupNorm' in layers:
        # The only one that has no kernel for half-precision inputs with float32 parameters.
        layers['GroupNorm'].to(x.dtype)
    return layers


def measure_layers(
    names: Sequence[str],
    inputs: Iterable[tuple[Case, str, str]],
    device: torch.device,
    repeats: int,
    least: float = SECONDS,
) -> Iterator[dict[str, Any]]:
    """Measures layers on random inputs, one after the other.

    Args:
        names: Keys of :data:`LAYERS`, 'BatchNorm' among them.
        inputs: The case, dtype and memory format of each.
        device: Where to measure.
        repeats, least: As in :func:`.measure.time_side_by_side`.

    Yields:
        For each input and layer the record of :func:`.measure.measure`, with the input.
    """
    with group_of_one(device) if _SYNCHRONIZED.intersection(names) else nullcontext():
        for case, dtype, memory_format in inputs:
            x = torch.randn(case.shape, device=device)
            x = x.to(getattr(torch, dtype), memory_format=FORMATS[memory_format])
            described = {
                'model': case.model,
                'shape': list(case.shape),
                'dtype': dtype,
                'format': memory_format,
                'bytes': x.numel() * x.element_size(),
            }
            for record in measure(make_layers(names, x), x, repeats, least):
                yield {**described, **record}
