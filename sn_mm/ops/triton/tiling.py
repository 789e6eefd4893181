"""How a batch is cut into the tiles that programs work on.

A tile is channels by positions, its rows: those of a contiguous batch are N*C channels, one after
the other, each a run of L positions; in a channels_last batch the C channels of an instance lie
side by side at each of L positions. A reduction walks along the positions with statistics of its
own in each lane of the tile, and pools the lanes at the end. Where the channels are too few to fill
a GPU, their positions are cut into chunks for several programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import triton
from torch import Tensor

# Values in a full tile, and how many programs a reduction should have: a few per multiprocessor.
TILE = 4096
PROGRAMS = 1024
# Chunks in a tile of a kernel that pools, and channels: 32 bytes, the least that memory moves.
CHUNK_BLOCKS = (1, 16, 128)
CHANNEL_BLOCK = 8


@dataclass(frozen=True)
class Tiling:
    """The programs of a kernel that reads or writes a whole batch.

    Attributes:
        programs: How many.
        sizes: Arguments of every such kernel: N, C, L, blocks, chunks, steps.
        constants: Its constants CHANNELS_LAST, UNIT, BLOCK_CHANNELS, BLOCK_POSITIONS. ``UNIT``
            divides the size of the dimension that is dense in memory, and the kernel gets that size
            in units: so it knows, without being compiled for each size, where it can load 16 bytes
            at a time.
        warps: Of a program.
        chunks: Into how many chunks the positions are cut.
        chunk: Positions in a chunk; the last one may have fewer.
    """

    programs: int
    sizes: tuple[int, ...]
    constants: tuple[int, ...]
    warps: int
    chunks: int
    chunk: int


def tiling(x: Tensor, reduction: bool) -> Tiling:
    """For an input that is dense in memory; ``reduction``: the kernel sums over positions."""
    n, c = x.shape[:2]
    return cut(not x.is_contiguous(), n, c, x.numel() // (n * c), reduction, TILE, PROGRAMS)


@lru_cache(maxsize=4096)
def cut(
    channels_last: bool,
    instances: int,
    channels: int,
    positions: int,
    reduction: bool,
    tile: int,
    programs: int,
) -> Tiling:
    """Tiles of ``tile`` values.

    Each program of a reduction gets a chunk of many tiles if there are ``programs`` even so, any
    other program one tile.
    """
    if channels_last:
        rows, groups = channels, instances
        block_channels = min(triton.next_power_of_2(rows), 128, tile)
        block_positions = min(triton.next_power_of_2(positions), tile // block_channels)
        # Offsets within a tile are counted in 32 bits.
        block_positions = min(block_positions, max(1, 2**31 // triton.next_power_of_2(rows)))
    else:
        rows, groups = instances * channels, 1
        # At least four steps along a row, so that little of the last one is empty.
        block_positions = tile
        while block_positions > 64 and 4 * block_positions > positions:
            block_positions //= 4
        block_positions = min(block_positions, triton.next_power_of_2(positions))
        block_channels = min(triton.next_power_of_2(rows), tile // block_positions)
        if ceil_div(rows, block_channels) < programs:
            block_channels = max(1, block_channels // 4)
    blocks, steps = ceil_div(rows, block_channels), 1
    if reduction:
        # A chunk that is hardly more than a tile would not pay for the pooling.
        worth = min(rows, block_channels) * positions // (2 * tile)
        chunks = max(1, min(programs // (groups * blocks), worth))
        steps = ceil_div(ceil_div(positions, block_positions), chunks)
    chunk = steps * block_positions
    chunks = ceil_div(positions, chunk)
    unit = next(u for u in (8, 4, 1) if (channels if channels_last else positions) % u == 0)
    sizes = (
        instances,
        channels // unit if channels_last else channels,
        positions if channels_last else positions // unit,
        blocks,
        chunks,
        steps,
    )
    constants = channels_last, unit, block_channels, block_positions
    # Values that are loaded one by one take twice the registers.
    warps = max(1, min(16, block_channels * block_positions // (512 if unit > 1 else 256)))
    return Tiling(groups * blocks * chunks, sizes, constants, warps, chunks, chunk)


def ceil_div(size: int, block: int) -> int:
    """How many blocks hold ``size`` items. (``triton.cdiv`` takes 2 microseconds on the host.)"""
    return -(-size // block)


def pool_tile(chunks: int) -> tuple[tuple[int, int, int], int]:
    """The tile of a kernel that pools, instances by chunks by channels, and the warps of a program.

    Few shapes, so that few kernels are compiled. Lanes that ``chunks`` leave free have instances, a
    thousand of these and channels at most: each has many numbers to keep.
    """
    block_chunks = next((b for b in CHUNK_BLOCKS if b >= chunks), CHUNK_BLOCKS[-1])
    block_instances = max(1, min(1024, TILE // block_chunks) // CHANNEL_BLOCK)
    tile = block_instances, block_chunks, CHANNEL_BLOCK
    return tile, 8 if block_chunks == 1 else 16
