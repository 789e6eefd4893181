"""Training steps of a plain ResNet-50 with BatchNorm, SN and SyncBatchNorm, eager, side by side.

On a GPU 64 images of 224 pixels under bfloat16 autocast, channels_last. SyncBatchNorm and 'SN,
synchronized' call their collectives, in a group of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.benchmark.measure import measure_steps
from sn_mm.benchmark.one_rank import SynchronizedBatchNorm2d, SynchronizedSwitchNorm2d, group_of_one

from ..resnet import Norm, ResNet
from .step import Failed, one_line

Step = Callable[[], Any]


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    norms: dict[str, Norm] = {
        'BatchNorm': nn.BatchNorm2d,
        'SN': SwitchNorm2d,
        'SN, synchronized': SynchronizedSwitchNorm2d,
    }
    if device.type == 'cuda':
        norms['SyncBatchNorm'] = SynchronizedBatchNorm2d
    with group_of_one(device):
        yield from compare(norms, device, quick, lambda model: model)


def compare(
    norms: Mapping[str, Norm],
    device: torch.device,
    quick: bool,
    prepare: Callable[[nn.Module], Any],
    quick_blocks: Sequence[int] = (1, 1, 1, 1),
) -> Iterator[dict[str, Any]]:
    """One record a norm; one that cannot train gives its error, and the others are measured.

    Args:
        norms: Makes the norm layers of each model.
        device: Where to train.
        quick: A small and narrow ResNet on two small images.
        prepare: Called with each model before it trains.
        quick_blocks: Blocks of each stage of the small ResNet.

    Raises:
        Failed: After the last record, where a norm could not train.
    """
    torch.backends.cudnn.benchmark = True
    steps, errors = {}, {}
    for name, norm in norms.items():
        try:
            step = make_step(norm, device, prepare, quick_blocks if quick else None)
            for _ in range(3):
                step()
            steps[name] = step
        except Exception as error:  # the other norms go on
            errors[name] = one_line(error)
            yield {'norm': name, 'error': errors[name]}
    repeats, least = (2, 0.0) if quick else (10, 0.05)
    measured = measure_steps(steps, 'BatchNorm', device, repeats, warmup=1, least=least)
    for name, record in measured.items():
        yield {'norm': name, **record}
    if errors:
        raise Failed('; '.join(f'{name}: {error}' for name, error in errors.items()))


def make_step(
    norm: Norm,
    device: torch.device,
    prepare: Callable[[nn.Module], Any],
    quick_blocks: Sequence[int] | None,
) -> Step:
    """Forward, backward and the optimizer's step, on the same images each time."""
    torch.manual_seed(0)
    images, size = (64, 224) if quick_blocks is None else (2, 32)
    model = ResNet(norm) if quick_blocks is None else ResNet(norm, quick_blocks, 8, 10)
    model = model.to(device, memory_format=torch.channels_last)
    trained = prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(images, 3, size, size, device=device)
    x = x.to(memory_format=torch.channels_last)
    labels = torch.arange(images, device=device) % 10

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
            loss = nn.functional.cross_entropy(trained(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
