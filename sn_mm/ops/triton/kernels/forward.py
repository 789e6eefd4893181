"""Kernels of the forward pass that read the input; arguments as the package says."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from .scopes import PARAMETERS, importance, mixed
from .tiles import SIZES, lane_shares, place_of, pooled, update


@triton.jit(do_not_specialize=SIZES)
def moments(
    x,
    pivot,
    parts,
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
) -> None:
    """Moments of each chunk of positions."""
    channels, positions, n, c, rows, number, first, end, origin, inside, stride = place_of(
        tl.program_id(0), instances, channels, positions, blocks, chunks, steps, CHANNELS_LAST,
        UNIT, BLOCK_CHANNELS, BLOCK_POSITIONS,
    )  # fmt: skip
    at = n * channels + c
    # Values are taken about their channel's first one, so that little is lost where they are all
    # far from zero.
    if CHANNELS_LAST:
        heads = n * channels * positions + c
    else:
        heads = at * positions
    centre = tl.load(x + heads, mask=rows).to(tl.float32)
    lane = tl.arange(0, BLOCK_POSITIONS)
    lane_mean = tl.zeros([BLOCK_CHANNELS, BLOCK_POSITIONS], tl.float32)
    lane_squares = tl.zeros([BLOCK_CHANNELS, BLOCK_POSITIONS], tl.float32)
    seen = 0.0
    for begin in range(first, end, BLOCK_POSITIONS):
        mask = rows[:, None] & (begin + lane < positions)[None, :]
        start = x + (origin + begin * stride)
        value = tl.load(start + inside, mask=mask, other=0.0).to(tl.float32) - centre[:, None]
        seen += 1.0
        lane_mean, lane_squares = update(value, mask, lane_mean, lane_squares, seen)
    size = end - first
    share = lane_shares(lane, BLOCK_POSITIONS, size)[None, :]
    mean, var = pooled(lane_mean, lane_squares / size.to(tl.float32), share, 1)
    values = channels * instances
    tl.store(pivot + at, centre, mask=rows)
    tl.store(parts + number * values + at, mean, mask=rows)
    tl.store(parts + (chunks + number) * values + at, var, mask=rows)


@triton.jit(do_not_specialize=[*SIZES, *PARAMETERS, 'bias'])
def apply(
    x,
    y,
    instance,
    layer,
    batch,
    mean_weight,
    var_weight,
    weight,
    bias,
    eps,
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
    IN: tl.constexpr,
    LN: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """``y``: one tile a program."""
    channels, positions, n, c, rows, number, first, end, origin, inside, stride = place_of(
        tl.program_id(0), instances, channels, positions, blocks, chunks, steps, CHANNELS_LAST,
        UNIT, BLOCK_CHANNELS, BLOCK_POSITIONS,
    )  # fmt: skip
    # The slowest loads come first.
    mask = rows[:, None] & (first + tl.arange(0, BLOCK_POSITIONS) < positions)[None, :]
    start = origin + first * stride
    value = tl.load(x + start + inside, mask=mask).to(tl.float32)
    _, p_ln, p_bn = importance(mean_weight, IN, LN, BN)
    q_in, q_ln, q_bn = importance(var_weight, IN, LN, BN)
    mean, off, var = mixed(
        instance, layer, batch, p_ln, p_bn, q_in, q_ln, q_bn, n, c, instances, channels, rows,
        IN, LN, BN,
    )  # fmt: skip
    scale = 1.0 / tl.sqrt(var + eps)
    if weight is not None:
        scale *= tl.load(weight + c, mask=rows).to(tl.float32)
    result = scale[:, None] * ((value - mean[:, None]) - off[:, None])
    if bias is not None:
        result += tl.load(bias + c, mask=rows).to(tl.float32)[:, None]
    tl.store(y + start + inside, result.to(y.dtype.element_ty), mask=mask)
