"""Layers side by side: SN, BatchNorm, SyncBatchNorm and GroupNorm on the inputs of a ResNet.

SyncBatchNorm and 'SN, synchronised' call their collectives, in a group of one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.benchmark.measure import measure
from sn_mm.benchmark.one_rank import SynchronisedBatchNorm2d, SynchronisedSwitchNorm2d, group_of_one

FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = ('float32', 'float16', 'bfloat16')
# ResNet-50 at 224 pixels with 64 images, its largest with 256; a feature pyramid; RoI heads.
MAPS = [
    ('ResNet', (256, 64, 112, 112)),
    ('ResNet', (256, 256, 56, 56)),
    ('ResNet', (64, 64, 112, 112)),
    ('ResNet', (64, 256, 56, 56)),
    ('ResNet', (64, 512, 28, 28)),
    ('ResNet', (64, 1024, 14, 14)),
    ('ResNet', (64, 2048, 7, 7)),
    ('FPN', (2, 256, 200, 336)),
    ('RoI head', (512, 256, 7, 7)),
]
QUICK = [('ResNet', (2, 64, 14, 14)), ('ResNet', (2, 128, 7, 7))]


def make_layers(channels: int, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The layers as mixed-precision training keeps them; 'SyncBatchNorm' has CUDA kernels only."""
    layers: dict[str, nn.Module] = {
        'BatchNorm': nn.BatchNorm2d(channels),
        'SN': SwitchNorm2d(channels),
        'SN, synchronised': SynchronisedSwitchNorm2d(channels),
        # The only one that has no kernel for half-precision inputs with float32 parameters.
        'GroupNorm': nn.GroupNorm(32, channels).to(dtype),
    }
    if device.type == 'cuda':
        layers['SyncBatchNorm'] = SynchronisedBatchNorm2d(channels)
    return {name: layer.to(device) for name, layer in layers.items()}


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    repeats, least = (2, 0.0) if quick else (5, 0.006)
    with group_of_one(device):
        for model, shape in QUICK if quick else MAPS:
            for dtype in DTYPES:
                for name, memory_format in FORMATS.items():
                    x = torch.randn(shape, device=device)
                    x = x.to(getattr(torch, dtype), memory_format=memory_format)
                    case = {'model': model, 'shape': list(shape), 'dtype': dtype, 'format': name}
                    case['bytes'] = x.numel() * x.element_size()
                    layers = make_layers(shape[1], device, x.dtype)
                    for record in measure(layers, x, repeats, least):
                        yield {**case, **record}
