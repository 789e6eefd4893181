"""Inputs on which a normalization layer can lose digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SHAPE, SMALL_SHAPE = (4, 16, 32, 32), (2, 8, 12, 12)
LONG, SMALL_LONG = 2**24, 2**16  # positions in a channel

FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


class Case(NamedTuple):
    """A kind of input.

    Attributes:
        name: For the page.
        shape: (N, C, H, W).
        make: From standard normal noise to the input.
        dtype: Of the input.
    """

    name: str
    shape: tuple[int, int, int, int]
    make: Callable[[Tensor], Tensor]
    dtype: torch.dtype = torch.float32

    def draw(self, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and gradients from above, always the same ones, as float32 noise makes them.

        Args:
            draws: Of the noise, more of fewer channels: a few roundings alone may suit a layer by
                luck. A long channel gets one.
        """
        draws = 1 if math.prod(self.shape) >= LONG else draws * max(1, 16 // self.shape[1])
        for seed in range(draws):
            noise = torch.Generator().manual_seed(seed)
            x = self.make(torch.randn(self.shape, generator=noise))
            yield x.to(self.dtype), torch.randn(self.shape, generator=noise).to(self.dtype)


def cases(small: bool) -> list[Case]:
    """All of them.

    Args:
        small: At sizes for an interpreter.
    """
    shape = n, c, h, w = SMALL_SHAPE if small else SHAPE
    long = SMALL_LONG if small else LONG
    side, power = math.isqrt(long), long.bit_length() - 1
    half, brain = torch.float16, torch.bfloat16
    return [
        *(Case(f'offset {by:g}', shape, lambda x, by=by: x + by) for by in _powers(2, 6)),
        *(Case(f'scale {by:g}', shape, lambda x, by=by: x * by) for by in _powers(-6, 6)),
        Case('offsets of 0.1 to 1e6 by channel', shape, _offset_by_channel),
        Case('offsets of 0.1 to 1e6 by image', shape, _offset_by_image),
        Case('every second channel constant', shape, _half_constant),
        Case('every channel constant', shape, lambda x: x[:1, :, :1, :1].expand_as(x) * 100),
        Case('all values 0.1', shape, lambda x: torch.full_like(x, 0.1)),
        Case('one hot pixel of 1e6 on zeros', shape, lambda x: _hot(torch.zeros_like(x))),
        Case('one hot pixel of 1e6 on noise', shape, _hot),
        Case('float16', shape, _same, half),
        Case('float16 to 6e4', shape, lambda x: x * (6e4 / x.abs().max()), half),
        Case('float16 from 5e4 to 6e4', shape, lambda x: x.clamp(-3, 3) * 1600 + 55e3, half),
        Case('bfloat16', shape, _same, brain),
        Case('bfloat16, offset 100', shape, lambda x: x + 100, brain),
        Case('bfloat16, scale 1e6', shape, lambda x: x * 1e6, brain),
        Case('N = 1', (1, c, h, w), _same),
        Case('L = 1', (8 * n, c, 1, 1), _same),
        Case('L = 1, offset 1e4', (8 * n, c, 1, 1), lambda x: x + 1e4),
        Case('C = 1', (n, 1, h, w), _same),
        Case('C = 1, offset 1e4', (n, 1, h, w), lambda x: x + 1e4),
        Case('one element in all', (1, 1, 1, 1), lambda x: x + 3),
        Case(f'2^{power} positions', (1, 1, side, side), _same),
        Case(f'2^{power} positions, offset 1e3', (1, 1, side, side), lambda x: x + 1e3),
    ]


def _powers(first: int, last: int) -> list[float]:
    return [10.0**power for power in range(first, last + 1)]


def _same(x: Tensor) -> Tensor:
    return x


def _offset_by_channel(x: Tensor) -> Tensor:
    return x + torch.logspace(-1, 6, x.shape[1]).view(-1, 1, 1)


def _offset_by_image(x: Tensor) -> Tensor:
    return x + torch.logspace(-1, 6, x.shape[0]).view(-1, 1, 1, 1)


def _half_constant(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, ::2] = x[:1, ::2, :1, :1] * 100
    return x


def _hot(x: Tensor) -> Tensor:
    x = x.clone()
    x[0, 0, 3, 5] = 1e6
    return x
