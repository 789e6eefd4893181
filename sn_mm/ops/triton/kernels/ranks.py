"""Kernels around the collective of a synchronized layer; arguments as the package says."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from .pooling import move, share_of_batch


@triton.jit(do_not_specialize=['channels', 'count'])
def contribute(batch, contribution, channels, count, BLOCK_CHANNELS: tl.constexpr) -> None:
    """This rank's count of positions, and its sums of values and of their squares, in float64."""
    program = tl.program_id(0)
    c = program * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    mask = c < channels
    count = count.to(tl.float64)
    mean = tl.load(batch + c, mask=mask, other=0.0).to(tl.float64)
    var = tl.load(batch + channels + c, mask=mask, other=0.0).to(tl.float64)
    tl.store(contribution + 1 + c, count * mean, mask=mask)
    tl.store(contribution + 1 + channels + c, count * (var + mean * mean), mask=mask)
    if program == 0:
        tl.store(contribution, count)


@triton.jit(do_not_specialize=['channels', 'running_mean', 'running_var', 'batches'])
def unite(
    contribution,
    batch,
    running_mean,
    running_var,
    batches,
    channels,
    momentum,
    BIASED: tl.constexpr,
    CUMULATIVE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    """Moments of the batch over all ranks, and the running statistics.

    ``BIASED``: whether variances are, and their running statistics are not.
    """
    program = tl.program_id(0)
    c = program * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    mask = c < channels
    positions = tl.load(contribution).to(tl.int64)
    seen = positions > 0
    count = tl.maximum(positions, 1).to(tl.float64)
    mean = tl.load(contribution + 1 + c, mask=mask, other=0.0) / count
    var = tl.load(contribution + 1 + channels + c, mask=mask, other=0.0) / count - mean * mean
    var = tl.where(var < 0, 0.0, var)  # and NaN stays
    tl.store(batch + c, mean.to(tl.float32), mask=mask)
    tl.store(batch + channels + c, var.to(tl.float32), mask=mask)
    if running_mean is not None:
        if BIASED:
            var *= count / tl.maximum(positions - 1, 1).to(tl.float64)
        share = share_of_batch(batches, momentum, seen & (program == 0), CUMULATIVE)
        move(running_mean, mean.to(tl.float32), share, c, mask & seen)
        move(running_var, var.to(tl.float32), share, c, mask & seen)
