"""What each program of the Triton backend does.

``x`` and ``dy`` are maps, dense in memory along the positions or (``LAST``) along the maps;
everything else is an (N, C) array in float32, or one for each chunk of positions. The sizes are
those of ``triton.Tiling``. Maps, positions and offsets of tiles are counted in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Compiled once for all of their values.
_SIZES = ['groups', 'maps', 'positions', 'blocks', 'chunks', 'steps']


@triton.jit
def _place(
    program: tl.tensor,
    groups: tl.tensor,
    maps: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    chunks: tl.tensor,
    steps: tl.tensor,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_MAPS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
) -> tl.tuple:
    """Where a program works: programs with neighbouring numbers are neighbours in memory.

    Returns the places of its maps in an (N, C) array, and in a (chunks, N, C) one, and which of
    them there are; the offset of the first map, those of all from there, those (maps, positions) of
    a tile's values from the tile's first, and that of a position from the one before; the first
    position, the one after the last, and the positions of a map.
    """
    maps, positions = maps.to(tl.int64), positions.to(tl.int64)
    map_lane, position_lane = tl.arange(0, BLOCK_MAPS), tl.arange(0, BLOCK_POSITIONS)
    if LAST:
        maps *= UNIT
        block = (program % blocks).to(tl.int64) * BLOCK_MAPS
        part = (program // blocks % chunks).to(tl.int64)
        first_map = (program // blocks // chunks) * maps
        origin = first_map * positions + block
        stride = maps
        heads = map_lane
        inside = heads[:, None] + position_lane[None, :] * maps.to(tl.int32)
    else:
        positions *= UNIT
        block = (program // chunks).to(tl.int64) * BLOCK_MAPS
        part = (program % chunks).to(tl.int64)
        first_map = maps * 0
        origin = block * positions
        stride = 1
        heads = map_lane * positions.to(tl.int32)
        inside = heads[:, None] + position_lane[None, :]
    place = first_map + block + map_lane
    there = block + map_lane < maps
    first = part * steps * BLOCK_POSITIONS
    end = tl.minimum(first + steps * BLOCK_POSITIONS, positions)
    chunk_place = part * groups * maps + place
    return place, chunk_place, there, origin, heads, inside, stride, first, end, positions


@triton.jit
def _pool(mean: tl.tensor, share_of_var: tl.tensor, weight: tl.tensor) -> tl.tuple:
    """Pools means and variances along axis 1, the latter already multiplied by their weights."""
    pooled = tl.sum(mean * weight, 1)
    mean -= pooled[:, None]
    return pooled, tl.sum(share_of_var + weight * mean * mean, 1)


@triton.jit(do_not_specialize=_SIZES)
def moments(
    x: tl.tensor,
    zero: tl.tensor,
    mean: tl.tensor,
    var: tl.tensor,
    groups: tl.tensor,
    maps: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    chunks: tl.tensor,
    steps: tl.tensor,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_MAPS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
) -> None:
    """``mean`` is taken from ``zero`` where a map has several chunks."""
    place, chunk_place, there, origin, heads, inside, stride, first, end, positions = _place(
        tl.program_id(0), groups, maps, positions, blocks, chunks, steps, LAST, UNIT,
        BLOCK_MAPS, BLOCK_POSITIONS,
    )  # fmt: skip
    lane = tl.arange(0, BLOCK_POSITIONS)
    # Welford's update in each lane, of values about the map's first one, so that little is lost
    # where they are all far from zero. A lane past the end stays as it is.
    from_zero = tl.load(x + origin + heads, mask=there).to(tl.float32)
    lane_mean = tl.zeros([BLOCK_MAPS, BLOCK_POSITIONS], tl.float32)
    lane_squares = tl.zeros([BLOCK_MAPS, BLOCK_POSITIONS], tl.float32)
    seen = 0.0
    for begin in range(first, end, BLOCK_POSITIONS):
        valid = there[:, None] & (begin + lane < positions)[None, :]
        start = x + (origin + begin * stride)
        value = tl.load(start + inside, mask=valid, other=0.0).to(tl.float32)
        seen += 1.0
        value -= from_zero[:, None]
        delta = tl.where(valid, value - lane_mean, 0.0)
        lane_mean += delta * (1.0 / seen)
        lane_squares += delta * (value - lane_mean)
    size = (end - first).to(tl.float32)
    count = (end - first - lane + BLOCK_POSITIONS - 1) // BLOCK_POSITIONS
    weight = (count.to(tl.float32) / size)[None, :]
    found_mean, found_var = _pool(lane_mean, lane_squares / size, weight)
    if chunks == 1:
        found_mean += from_zero
    tl.store(zero + place, from_zero, mask=there)
    tl.store(mean + chunk_place, found_mean, mask=there)
    tl.store(var + chunk_place, found_var, mask=there)


@triton.jit(do_not_specialize=['maps', 'positions', 'chunks', 'chunk'])
def pool_chunks(
    zero: tl.tensor,
    chunk_mean: tl.tensor,
    chunk_var: tl.tensor,
    mean: tl.tensor,
    var: tl.tensor,
    maps: tl.tensor,
    positions: tl.tensor,
    chunks: tl.tensor,
    chunk: tl.tensor,
    BLOCK_MAPS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK_MAPS + tl.arange(0, BLOCK_MAPS)
    part = tl.arange(0, BLOCK_CHUNKS).to(tl.int64)
    there = place < maps
    valid = there[:, None] & (part < chunks)[None, :]
    offsets = place[:, None] + part[None, :] * maps
    size = tl.maximum(tl.minimum(positions - part * chunk, chunk), 0)
    weight = (size.to(tl.float32) / positions.to(tl.float32))[None, :]
    part_mean = tl.load(chunk_mean + offsets, mask=valid, other=0.0)
    part_var = tl.load(chunk_var + offsets, mask=valid, other=0.0)
    found_mean, found_var = _pool(part_mean, part_var * weight, weight)
    found_mean += tl.load(zero + place, mask=there)
    tl.store(mean + place, found_mean, mask=there)
    tl.store(var + place, found_var, mask=there)


@triton.jit(do_not_specialize=_SIZES)
def apply(
    x: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    groups: tl.tensor,
    maps: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    chunks: tl.tensor,
    steps: tl.tensor,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_MAPS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
) -> None:
    place, _, there, origin, _, inside, stride, first, _, positions = _place(
        tl.program_id(0), groups, maps, positions, blocks, chunks, steps, LAST, UNIT,
        BLOCK_MAPS, BLOCK_POSITIONS,
    )  # fmt: skip
    valid = there[:, None] & (first + tl.arange(0, BLOCK_POSITIONS) < positions)[None, :]
    start = origin + first * stride
    value = tl.load(x + start + inside, mask=valid).to(tl.float32)
    scaled = tl.load(scale + place, mask=there)[:, None] * value
    found = scaled + tl.load(shift + place, mask=there)[:, None]
    tl.store(y + start + inside, found.to(y.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=_SIZES)
def grad_sums(
    dy: tl.tensor,
    x: tl.tensor,
    mean: tl.tensor,
    sum_dy: tl.tensor,
    sum_dy_xc: tl.tensor,
    groups: tl.tensor,
    maps: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    chunks: tl.tensor,
    steps: tl.tensor,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_MAPS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
) -> None:
    place, chunk_place, there, origin, _, inside, stride, first, end, positions = _place(
        tl.program_id(0), groups, maps, positions, blocks, chunks, steps, LAST, UNIT,
        BLOCK_MAPS, BLOCK_POSITIONS,
    )  # fmt: skip
    lane = tl.arange(0, BLOCK_POSITIONS)
    centre = tl.load(mean + place, mask=there)[:, None]
    lane_dy = tl.zeros([BLOCK_MAPS, BLOCK_POSITIONS], tl.float32)
    lane_dy_xc = tl.zeros([BLOCK_MAPS, BLOCK_POSITIONS], tl.float32)
    for begin in range(first, end, BLOCK_POSITIONS):
        valid = there[:, None] & (begin + lane < positions)[None, :]
        start = origin + begin * stride
        grad = tl.load(dy + start + inside, mask=valid, other=0.0).to(tl.float32)
        value = tl.load(x + start + inside, mask=valid, other=0.0).to(tl.float32)
        lane_dy += grad
        lane_dy_xc += grad * (value - centre)
    tl.store(sum_dy + chunk_place, tl.sum(lane_dy, 1), mask=there)
    tl.store(sum_dy_xc + chunk_place, tl.sum(lane_dy_xc, 1), mask=there)


@triton.jit(do_not_specialize=_SIZES)
def grad_input(
    dy: tl.tensor,
    x: tl.tensor,
    dx: tl.tensor,
    mean: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    groups: tl.tensor,
    maps: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    chunks: tl.tensor,
    steps: tl.tensor,
    LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_MAPS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
) -> None:
    place, _, there, origin, _, inside, stride, first, _, positions = _place(
        tl.program_id(0), groups, maps, positions, blocks, chunks, steps, LAST, UNIT,
        BLOCK_MAPS, BLOCK_POSITIONS,
    )  # fmt: skip
    valid = there[:, None] & (first + tl.arange(0, BLOCK_POSITIONS) < positions)[None, :]
    start = origin + first * stride
    grad = tl.load(dy + start + inside, mask=valid).to(tl.float32)
    value = tl.load(x + start + inside, mask=valid).to(tl.float32)
    centred = value - tl.load(mean + place, mask=there)[:, None]
    through_moments = tl.load(b + place, mask=there)[:, None] * centred
    through_moments += tl.load(c + place, mask=there)[:, None]
    found = tl.load(a + place, mask=there)[:, None] * grad + through_moments
    tl.store(dx + start + inside, found.to(dx.dtype.element_ty), mask=valid)
