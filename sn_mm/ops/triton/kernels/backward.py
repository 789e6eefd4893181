"""Kernels of the backward pass that read the input; arguments as the package says."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from .scopes import PARAMETERS, importance, mixed, mixed_backward, moments_at
from .tiles import SIZES, place_of


@triton.jit(do_not_specialize=SIZES)
def grad_sums(
    dy,
    x,
    instance,
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
    """S1 and S2 of each chunk of positions."""
    channels, positions, n, c, rows, number, first, end, origin, inside, stride = place_of(
        tl.program_id(0), instances, channels, positions, blocks, chunks, steps, CHANNELS_LAST,
        UNIT, BLOCK_CHANNELS, BLOCK_POSITIONS,
    )  # fmt: skip
    at = n * channels + c
    centre = tl.load(instance + at, mask=rows, other=0.0)[:, None]
    lane = tl.arange(0, BLOCK_POSITIONS)
    lane_s1 = tl.zeros([BLOCK_CHANNELS, BLOCK_POSITIONS], tl.float32)
    lane_s2 = tl.zeros([BLOCK_CHANNELS, BLOCK_POSITIONS], tl.float32)
    for begin in range(first, end, BLOCK_POSITIONS):
        mask = rows[:, None] & (begin + lane < positions)[None, :]
        start = origin + begin * stride
        grad = tl.load(dy + start + inside, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(x + start + inside, mask=mask, other=0.0).to(tl.float32)
        lane_s1 += grad
        lane_s2 += tl.where(mask, grad * (value - centre), 0.0)
    values = channels * instances
    tl.store(parts + number * values + at, tl.sum(lane_s1, 1), mask=rows)
    tl.store(parts + (chunks + number) * values + at, tl.sum(lane_s2, 1), mask=rows)


@triton.jit(do_not_specialize=[*SIZES, *PARAMETERS, 'total'])
def grad_input(
    dy,
    x,
    dx,
    instance,
    layer,
    batch,
    instance_sums,
    layer_sums,
    batch_sums,
    mean_weight,
    var_weight,
    weight,
    total,
    eps,
    correction,
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
    TOTAL_IN_MEMORY: tl.constexpr,
) -> None:
    """``dx = scale * dy + b * (x - mean) + c``: one tile a program."""
    channels, positions, n, c, rows, number, first, end, origin, inside, stride = place_of(
        tl.program_id(0), instances, channels, positions, blocks, chunks, steps, CHANNELS_LAST,
        UNIT, BLOCK_CHANNELS, BLOCK_POSITIONS,
    )  # fmt: skip
    # The slowest loads come first.
    mask = rows[:, None] & (first + tl.arange(0, BLOCK_POSITIONS) < positions)[None, :]
    start = origin + first * stride
    grad = tl.load(dy + start + inside, mask=mask).to(tl.float32)
    value = tl.load(x + start + inside, mask=mask).to(tl.float32)
    p_in, p_ln, p_bn = importance(mean_weight, IN, LN, BN)
    q_in, q_ln, q_bn = importance(var_weight, IN, LN, BN)
    mean, off, var = mixed(
        instance, layer, batch, p_ln, p_bn, q_in, q_ln, q_bn, n, c, instances, channels, rows,
        IN, LN, BN,
    )  # fmt: skip
    values = channels * instances
    scale = 1.0 / tl.sqrt(var + eps)
    factor = tl.where(rows, 1.0, 0.0)
    if weight is not None:
        factor *= tl.load(weight + c, mask=rows, other=0.0).to(tl.float32)
    s1, s2 = moments_at(instance_sums, n * channels + c, values, rows)
    g1, g2, _ = mixed_backward(s1, s2, off, var, factor, eps)
    # Minus the gradients of the instance mean, and of twice the instance variance.
    grad_mean = p_in * g1
    grad_var = q_in * g2
    # A scope's mean is sum part m, its variance sum part (v + (m - mean)^2).
    if LN:
        part = 1.0 / channels.to(tl.float32)
        g1, g2 = moments_at(layer_sums, n, instances, rows)
        scope_mean = tl.load(layer + n, mask=rows, other=0.0)
        grad_mean += part * (g1 + g2 * (mean - scope_mean))
        grad_var += part * g2
    if batch_sums is not None:
        if TOTAL_IN_MEMORY:
            part = positions.to(tl.float32) / tl.load(total).to(tl.float32)
        else:
            part = positions.to(tl.float32) / total.to(tl.float32)
        g1, g2 = moments_at(batch_sums, c, channels, rows)
        scope_mean = tl.load(batch + c, mask=rows, other=0.0)
        grad_mean += part * (g1 + g2 * (mean - scope_mean))
        grad_var += part * g2
    scale *= factor
    through_var = (-correction / positions.to(tl.float32)) * grad_var
    through_mean = (-1.0 / positions.to(tl.float32)) * grad_mean
    result = through_var[:, None] * (value - mean[:, None]) + through_mean[:, None]
    result += scale[:, None] * grad
    tl.store(dx + start + inside, result.to(dx.dtype.element_ty), mask=mask)
