"""The four sweeps as Triton kernels, for float32, float16 and bfloat16 maps on CUDA.

Both memory formats are groups of maps: a contiguous batch is one group of N*C maps, each a run of
L positions; a channels_last one is N groups of C maps, whose values lie side by side at each of L
positions. A program takes tiles of maps by positions. A reduction walks along the positions with
statistics of its own in each lane of the tile, and pools the lanes at the end. Where there are too
few maps to fill a GPU, their positions are cut into chunks for several programs, and what these
find is pooled by one more, tiny, kernel.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, all of it runs on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from . import kernels

# Values in a full tile, and how many programs a reduction should have: a few per multiprocessor.
TILE = 4096
PROGRAMS = 1024

INTERPRETED = not isinstance(kernels.moments, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter, which takes tensors of any device."""


@dataclass(frozen=True)
class Tiling:
    """How a batch is cut into the tiles and chunks that the programs of a kernel work on.

    Attributes:
        grid: The number of programs.
        arguments: What every kernel takes after its tensors. ``UNIT`` divides the size of the
            dimension that is dense in memory, and the kernel gets that size in units: so it knows,
            without being compiled for each size, where it can load 16 bytes at a time.
        chunks: Into how many chunks the positions of each map are cut.
        chunk: Positions in a chunk; the last one may have fewer.
    """

    grid: tuple[int]
    arguments: dict[str, Any]
    chunks: int
    chunk: int


@lru_cache(maxsize=4096)
def _cut(
    last: bool, groups: int, maps: int, positions: int, reduction: bool, tile: int, programs: int
) -> Tiling:
    """Tiles for ``groups`` of ``maps`` of ``positions``; ``last``: the maps are dense in memory.

    Each program of a reduction gets a chunk of many tiles if there are ``programs`` even so, any
    other program one tile.
    """
    if last:
        block_maps = min(triton.next_power_of_2(maps), 128, tile)
        block_positions = min(triton.next_power_of_2(positions), tile // block_maps)
        # Offsets within a tile are counted in 32 bits.
        block_positions = min(block_positions, max(1, 2**31 // triton.next_power_of_2(maps)))
    else:
        # At least four steps along a row, so that little of the last one is empty.
        block_positions = tile
        while block_positions > 64 and 4 * block_positions > positions:
            block_positions //= 4
        block_positions = min(block_positions, triton.next_power_of_2(positions))
        block_maps = min(triton.next_power_of_2(maps), tile // block_positions)
        if triton.cdiv(maps, block_maps) < programs:
            block_maps = max(1, block_maps // 4)
    blocks, steps = triton.cdiv(maps, block_maps), 1
    if reduction:
        # A chunk that is hardly more than a tile would not pay for the pooling.
        worth = min(maps, block_maps) * positions // (2 * tile)
        chunks = max(1, min(programs // (groups * blocks), worth))
        steps = triton.cdiv(triton.cdiv(positions, block_positions), chunks)
    chunk = steps * block_positions
    chunks = triton.cdiv(positions, chunk)
    unit = next(unit for unit in (8, 4, 1) if (maps if last else positions) % unit == 0)
    arguments = {
        'groups': groups,
        'maps': maps // unit if last else maps,
        'positions': positions if last else positions // unit,
        'blocks': blocks,
        'chunks': chunks,
        'steps': steps,
        'LAST': last,
        'UNIT': unit,
        'BLOCK_MAPS': block_maps,
        'BLOCK_POSITIONS': block_positions,
        # Values that are loaded one by one take twice the registers.
        'num_warps': max(1, min(16, block_maps * block_positions // (512 if unit > 1 else 256))),
    }
    return Tiling((groups * blocks * chunks,), arguments, chunks, chunk)


def _tiling(x: Tensor, reduction: bool) -> Tiling:
    n, c = x.shape[:2]
    positions = x.numel() // (n * c)
    if x.is_contiguous():
        return _cut(False, 1, n * c, positions, reduction, TILE, PROGRAMS)
    return _cut(True, n, c, positions, reduction, TILE, PROGRAMS)


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    tiling = _tiling(x, reduction=True)
    found = torch.empty(2, tiling.chunks, *x.shape[:2], dtype=dtype, device=x.device)
    zero = torch.empty_like(found[0, 0])
    with torch.cuda.device_of(x):
        kernels.moments[tiling.grid](x, zero, *found.unbind(), **tiling.arguments)
        if tiling.chunks > 1:
            parts, found = found, torch.empty_like(found[:, :1])
            maps = found[0].numel()
            block_chunks = triton.next_power_of_2(tiling.chunks)
            block_maps = max(4, 1024 // block_chunks)
            kernels.pool_chunks[triton.cdiv(maps, block_maps),](
                zero, *parts.unbind(), *found.unbind(), maps, x.numel() // maps, tiling.chunks,
                tiling.chunk, BLOCK_MAPS=block_maps, BLOCK_CHUNKS=block_chunks,
            )  # fmt: skip
    mean, var = found[:, 0].unbind()
    return mean, var, None


def apply(x: Tensor, scale: Tensor, shift: Tensor, spare: Tensor | None = None) -> Tensor:
    tiling = _tiling(x, reduction=False)
    y = torch.empty_like(x) if spare is None else spare
    with torch.cuda.device_of(x):
        kernels.apply[tiling.grid](x, y, scale.contiguous(), shift.contiguous(), **tiling.arguments)
    return y


def grad_sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    tiling = _tiling(x, reduction=True)
    found = torch.empty(2, tiling.chunks, *x.shape[:2], dtype=mean.dtype, device=x.device)
    with torch.cuda.device_of(x):
        kernels.grad_sums[tiling.grid](
            dy, x, mean.contiguous(), *found.unbind(), **tiling.arguments
        )
    sum_dy, sum_dy_xc = (found[:, 0] if tiling.chunks == 1 else found.sum(1)).unbind()
    return sum_dy, sum_dy_xc


def grad_input(dy: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    tiling = _tiling(x, reduction=False)
    dx = torch.empty_like(x)
    arrays = (array.contiguous() for array in (mean, a, b, c))
    with torch.cuda.device_of(x):
        kernels.grad_input[tiling.grid](dy, x, dx, *arrays, **tiling.arguments)
    return dx
