"""Layers side by side: SN, BatchNorm, SyncBatchNorm and GroupNorm on the inputs of a ResNet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from sn_mm.benchmark.layers import DTYPES, FORMATS, measure_layers
from sn_mm.benchmark.shapes import Case

# ResNet-50 at 224 pixels with 64 images, its largest with 256; a feature pyramid; RoI heads.
CASES = [
    Case('ResNet', (256, 64, 112, 112)),
    Case('ResNet', (256, 256, 56, 56)),
    Case('ResNet', (64, 64, 112, 112)),
    Case('ResNet', (64, 256, 56, 56)),
    Case('ResNet', (64, 512, 28, 28)),
    Case('ResNet', (64, 1024, 14, 14)),
    Case('ResNet', (64, 2048, 7, 7)),
    Case('FPN', (2, 256, 200, 336)),
    Case('RoI head', (512, 256, 7, 7)),
]
QUICK = [Case('ResNet', (2, 64, 14, 14)), Case('ResNet', (2, 128, 7, 7))]


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    names = ['BatchNorm', 'SN', 'SN, synchronized', 'GroupNorm']
    if device.type == 'cuda':
        names.append('SyncBatchNorm')
    inputs = product(QUICK if quick else CASES, DTYPES, FORMATS)
    repeats, least = (2, 0.0) if quick else (5, 0.006)
    yield from measure_layers(names, inputs, device, repeats, least)
