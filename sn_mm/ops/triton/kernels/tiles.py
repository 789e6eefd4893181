"""Where a program works, and how values and chunks are pooled: device functions of all kernels."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

SIZES = ['instances', 'channels', 'positions', 'blocks', 'chunks', 'steps']
"""The sizes of an input and its tiles, as a kernel takes them: not compiled for each value."""


@triton.jit
def sizes(channels, positions, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr):
    """C and L in 64 bits. The launch passes the one that is dense in memory as a multiple of UNIT.

    So the compiler knows, for all sizes at once, where 16 bytes can be loaded at a time.
    """
    channels, positions = channels.to(tl.int64), positions.to(tl.int64)
    if CHANNELS_LAST:
        channels *= UNIT
    else:
        positions *= UNIT
    return channels, positions


@triton.jit
def block_of(
    program,
    instances,
    channels,
    blocks,
    chunks,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Instance and channel of each row of a program's tile, (BLOCK_CHANNELS,), and their mask.

    Rows of a contiguous batch run on from one instance to the next. Programs with neighbouring
    numbers are neighbours in memory.
    """
    lane = tl.arange(0, BLOCK_CHANNELS)
    if CHANNELS_LAST:
        channel = (program % blocks).to(tl.int64) * BLOCK_CHANNELS + lane
        instance = (program // blocks // chunks).to(tl.int64) + lane * 0
        mask = channel < channels
    else:
        row = (program // chunks).to(tl.int64) * BLOCK_CHANNELS + lane
        instance = row // channels
        channel = row - instance * channels
        mask = instance < instances
    return instance, channel, mask


@triton.jit
def chunk_of(
    program, positions, blocks, chunks, steps, CHANNELS_LAST: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """The chunk of a program: its number, its first position and the one after its last."""
    if CHANNELS_LAST:
        number = (program // blocks % chunks).to(tl.int64)
    else:
        number = (program % chunks).to(tl.int64)
    first = number * steps * BLOCK_POSITIONS
    return number, first, tl.minimum(first + steps * BLOCK_POSITIONS, positions)


@triton.jit
def tile_of(
    program,
    channels,
    positions,
    blocks,
    chunks,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """Offsets in an input: of a program's first channel at position 0; of the values of a tile
    (BLOCK_CHANNELS, BLOCK_POSITIONS) from the tile's first; of a position from the one before it.
    """
    channel, position = tl.arange(0, BLOCK_CHANNELS), tl.arange(0, BLOCK_POSITIONS)
    if CHANNELS_LAST:
        origin = (program // blocks // chunks) * channels * positions
        origin += (program % blocks).to(tl.int64) * BLOCK_CHANNELS
        inside = channel[:, None] + position[None, :] * channels.to(tl.int32)
        stride = channels
    else:
        origin = (program // chunks).to(tl.int64) * BLOCK_CHANNELS * positions
        inside = channel[:, None] * positions.to(tl.int32) + position[None, :]
        stride = positions * 0 + 1
    return origin, inside, stride


@triton.jit
def place_of(
    program,
    instances,
    channels,
    positions,
    blocks,
    chunks,
    steps,
    CHANNELS_LAST: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):
    """Where a program works: what the four functions above give, one after the other."""
    channels, positions = sizes(channels, positions, CHANNELS_LAST, UNIT)
    n, c, rows = block_of(
        program, instances, channels, blocks, chunks, CHANNELS_LAST, BLOCK_CHANNELS
    )
    number, first, end = chunk_of(
        program, positions, blocks, chunks, steps, CHANNELS_LAST, BLOCK_POSITIONS
    )
    origin, inside, stride = tile_of(
        program, channels, positions, blocks, chunks, CHANNELS_LAST, BLOCK_CHANNELS,
        BLOCK_POSITIONS,
    )  # fmt: skip
    return channels, positions, n, c, rows, number, first, end, origin, inside, stride


@triton.jit
def update(value, mask, mean, squares, seen):
    """Welford's update of the mean and the sum of squares that each lane keeps.

    Args:
        value: A tile; where ``mask`` is false the lane stays as it is.
        seen: How many values the lanes have, these included.
    """
    delta = tl.where(mask, value - mean, 0.0)
    mean += delta * (1.0 / seen)
    return mean, squares + delta * (value - mean)


@triton.jit
def lane_shares(lane, LANES: tl.constexpr, size):
    """The share of ``size`` values that each of LANES lanes has got, which take them in turn."""
    count = (size - lane + LANES - 1) // LANES
    return count.to(tl.float32) / size.to(tl.float32)


@triton.jit
def pooled(mean, var_share, share, AXIS: tl.constexpr):
    """Mean and variance along AXIS of parts with means, variances times shares, and shares."""
    centre = tl.sum(mean * share, AXIS)
    mean -= tl.expand_dims(centre, AXIS)
    return centre, tl.sum(var_share + share * mean * mean, AXIS)


@triton.jit
def merge_moments(
    pivot,
    parts,
    at,
    mask,
    size,
    positions,
    chunks,
    chunk,
    BLOCK_INSTANCES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Of instances' channels: pivot, mean about it and biased variance, from those of their chunks.

    Args:
        at: Offsets in an (N, C) array of ``size`` elements, (BLOCK_INSTANCES, BLOCK_CHANNELS).
        chunk: Positions in a chunk; the last one may have fewer.
    """
    lane = tl.arange(0, BLOCK_CHUNKS)[None, :, None]
    lane_mean = tl.zeros([BLOCK_INSTANCES, BLOCK_CHUNKS, BLOCK_CHANNELS], tl.float32)
    lane_var = tl.zeros([BLOCK_INSTANCES, BLOCK_CHUNKS, BLOCK_CHANNELS], tl.float32)
    lane_share = tl.zeros([1, BLOCK_CHUNKS, 1], tl.float32)
    for first in range(0, chunks, BLOCK_CHUNKS):
        number = (first + lane).to(tl.int64)
        valid = mask[:, None, :] & (number < chunks)
        offsets = number * size + at[:, None, :]
        mean = tl.load(parts + offsets, mask=valid, other=0.0)
        var = tl.load(parts + chunks * size + offsets, mask=valid, other=0.0)
        # Welford's update with weights; a chunk past the last one has none.
        count = tl.minimum(positions - number * chunk, chunk)
        share = tl.where(number < chunks, count.to(tl.float32) / positions.to(tl.float32), 0.0)
        lane_share += share
        delta = mean - lane_mean
        lane_mean += delta * (share / tl.where(lane_share > 0, lane_share, 1.0))
        lane_var += share * (var + delta * (mean - lane_mean))
    mean, var = pooled(lane_mean, lane_var, lane_share, 1)
    return tl.load(pivot + at, mask=mask, other=0.0), mean, var


@triton.jit
def merge_sums(
    parts,
    at,
    mask,
    size,
    chunks,
    BLOCK_INSTANCES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """S1 and S2 of instances' channels from those of their chunks; arguments as above."""
    lane = tl.arange(0, BLOCK_CHUNKS)[None, :, None]
    lane_s1 = tl.zeros([BLOCK_INSTANCES, BLOCK_CHUNKS, BLOCK_CHANNELS], tl.float32)
    lane_s2 = tl.zeros([BLOCK_INSTANCES, BLOCK_CHUNKS, BLOCK_CHANNELS], tl.float32)
    for first in range(0, chunks, BLOCK_CHUNKS):
        number = (first + lane).to(tl.int64)
        valid = mask[:, None, :] & (number < chunks)
        offsets = number * size + at[:, None, :]
        lane_s1 += tl.load(parts + offsets, mask=valid, other=0.0)
        lane_s2 += tl.load(parts + chunks * size + offsets, mask=valid, other=0.0)
    return tl.sum(lane_s1, 1), tl.sum(lane_s2, 1)
