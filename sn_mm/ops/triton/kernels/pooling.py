"""The kernel between those of the forward pass, and running statistics."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from .tiles import lane_shares, merge_moments, pooled, update


@triton.jit
def count_batch(batches, contribution) -> None:
    """Counts a batch; one of all ranks only if it has positions. One program.

    A launch of its own, for a momentum of None: all programs of the next one read the count.
    """
    count = tl.load(batches) + 1
    if contribution is None:
        tl.store(batches, count)
    elif tl.load(contribution) > 0:
        tl.store(batches, count)


@triton.jit
def move(running, value, share, at, mask):
    """Moves running statistics, in whatever dtype they are kept."""
    old = tl.load(running + at, mask=mask, other=0.0).to(tl.float32)
    new = (1.0 - share) * old + share * value
    tl.store(running + at, new.to(running.dtype.element_ty), mask=mask)


@triton.jit
def share_of_batch(batches, momentum, counts, CUMULATIVE: tl.constexpr):
    """The share of a batch in the running statistics; a program that ``counts`` counts the batch.

    With ``CUMULATIVE``, a momentum of None, :func:`count_batch` has counted it.
    """
    if CUMULATIVE:
        momentum = 1.0 / tl.load(batches).to(tl.float32)
    elif batches is not None:
        if counts:  # not a mask: before Triton 3.3 the interpreter overlooks one that is a scalar
            tl.store(batches, tl.load(batches) + 1)
    return momentum


@triton.jit
def _instance_and_layer(
    n,
    pivot,
    parts,
    instance,
    layer,
    running_mean,
    running_var,
    instances,
    channels,
    positions,
    chunks,
    chunk,
    correction,
    READ: tl.constexpr,
    LN: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    values = instances * channels
    lane = tl.arange(0, LANES)
    lane_mean = tl.zeros([1, LANES], tl.float32)
    lane_squares = tl.zeros([1, LANES], tl.float32)
    seen = 0.0
    for first in range(0, channels, LANES):
        c = (first + lane)[None, :]
        mask = c < channels
        at = n * channels + c
        if READ:
            origin, mean, var = merge_moments(
                pivot, parts, at, mask, values, positions, chunks, chunk, 1, BLOCK_CHUNKS, LANES
            )
            var *= correction
        else:
            mean = tl.load(running_mean + c, mask=mask, other=0.0).to(tl.float32)
            origin = mean * 0
            var = tl.load(running_var + c, mask=mask, other=0.0).to(tl.float32)
        tl.store(instance + at, origin + mean, mask=mask)
        tl.store(instance + values + at, var, mask=mask)
        if LN:
            seen += 1.0
            mean += origin - tl.load(pivot + n * channels)  # rounded once, when it is stored
            lane_mean, lane_squares = update(mean, mask, lane_mean, lane_squares, seen)
            lane_squares += tl.where(mask, var, 0.0)
    if LN:
        share = lane_shares(lane, LANES, channels)[None, :]
        mean, var = pooled(lane_mean, lane_squares / channels.to(tl.float32), share, 1)
        only = n + tl.arange(0, 1)
        tl.store(layer + only, mean + tl.load(pivot + n * channels))
        tl.store(layer + instances + only, var)


@triton.jit
def _batch(
    block,
    pivot,
    parts,
    batch,
    running_mean,
    running_var,
    batches,
    instances,
    channels,
    positions,
    chunks,
    chunk,
    momentum,
    correction,
    unbiased,
    GIVEN: tl.constexpr,
    CUMULATIVE: tl.constexpr,
    BLOCK_INSTANCES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    values = instances * channels
    c = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    columns = c < channels
    if GIVEN:
        mean = tl.load(running_mean + c, mask=columns, other=0.0).to(tl.float32)
        var = tl.load(running_var + c, mask=columns, other=0.0).to(tl.float32)
    else:
        centre = tl.load(pivot + c, mask=columns, other=0.0)
        lane = tl.arange(0, BLOCK_INSTANCES)
        lane_mean = tl.zeros([BLOCK_INSTANCES, BLOCK_CHANNELS], tl.float32)
        lane_squares = tl.zeros([BLOCK_INSTANCES, BLOCK_CHANNELS], tl.float32)
        seen = 0.0
        for first in range(0, instances, BLOCK_INSTANCES):
            n = (first + lane)[:, None]
            mask = (n < instances) & columns[None, :]
            at = n * channels + c[None, :]
            origin, mean, var = merge_moments(
                pivot, parts, at, mask, values, positions, chunks, chunk, BLOCK_INSTANCES,
                BLOCK_CHUNKS, BLOCK_CHANNELS,
            )  # fmt: skip
            seen += 1.0
            lane_mean, lane_squares = update(
                mean + (origin - centre[None, :]), mask, lane_mean, lane_squares, seen
            )
            lane_squares += tl.where(mask, var * correction, 0.0)
        share = lane_shares(lane, BLOCK_INSTANCES, instances)[:, None]
        mean, var = pooled(lane_mean, lane_squares / instances.to(tl.float32), share, 0)
        mean += centre
        if running_mean is not None:
            new = share_of_batch(batches, momentum, block == 0, CUMULATIVE)
            move(running_mean, mean, new, c, columns)
            move(running_var, var * unbiased, new, c, columns)
    tl.store(batch + c, mean, mask=columns)
    tl.store(batch + channels + c, var, mask=columns)


@triton.jit(
    do_not_specialize=[
        'instances', 'channels', 'positions', 'chunks', 'chunk', 'running_mean', 'running_var',
        'batches',
    ]
)  # fmt: skip
def pool(
    instance,
    layer,
    batch,
    pivot,
    parts,
    running_mean,
    running_var,
    batches,
    instances,
    channels,
    positions,
    chunks,
    chunk,
    momentum,
    correction,
    unbiased,
    READ: tl.constexpr,
    GIVEN: tl.constexpr,
    CUMULATIVE: tl.constexpr,
    LN: tl.constexpr,
    BLOCK_INSTANCES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    """Moments of the scopes, and the running statistics.

    The first N programs have an instance each, over all of its channels; each one of the others has
    a block of channels over all instances. These merge the chunks anew rather than wait.

    With ``GIVEN`` the running statistics are 'bn', without ``READ`` they are 'in' as well.
    """
    program = tl.program_id(0).to(tl.int64)
    instances, channels = instances.to(tl.int64), channels.to(tl.int64)
    positions, chunks = positions.to(tl.int64), chunks.to(tl.int64)
    if program < instances:
        # The lanes that blocks of channels have for instances lie along the channels.
        _instance_and_layer(
            program, pivot, parts, instance, layer, running_mean, running_var, instances, channels,
            positions, chunks, chunk, correction, READ, LN, BLOCK_INSTANCES * BLOCK_CHANNELS,
            BLOCK_CHUNKS,
        )  # fmt: skip
    elif batch is not None:
        _batch(
            program - instances, pivot, parts, batch, running_mean, running_var, batches, instances,
            channels, positions, chunks, chunk, momentum, correction, unbiased, GIVEN, CUMULATIVE,
            BLOCK_INSTANCES, BLOCK_CHUNKS, BLOCK_CHANNELS,
        )  # fmt: skip
