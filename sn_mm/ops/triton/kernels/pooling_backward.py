"""Kernels between those of the backward pass; arguments as the package says."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

from .scopes import PARAMETERS, importance, importance_backward, mixed, mixed_backward, moments_at
from .tiles import merge_sums


@triton.jit
def _sums_of_instance(
    n,
    parts,
    instance,
    layer,
    batch,
    mean_weight,
    var_weight,
    weight,
    instance_sums,
    layer_sums,
    logit_sums,
    eps,
    instances,
    channels,
    chunks,
    IN: tl.constexpr,
    LN: tl.constexpr,
    BN: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    values = instances * channels
    p_in, p_ln, p_bn = importance(mean_weight, IN, LN, BN)
    q_in, q_ln, q_bn = importance(var_weight, IN, LN, BN)
    g1_sum = tl.zeros([1, LANES], tl.float32)
    g2_sum = tl.zeros([1, LANES], tl.float32)
    mean_in = tl.zeros([1, LANES], tl.float32)
    mean_ln = tl.zeros([1, LANES], tl.float32)
    mean_bn = tl.zeros([1, LANES], tl.float32)
    var_in = tl.zeros([1, LANES], tl.float32)
    var_ln = tl.zeros([1, LANES], tl.float32)
    var_bn = tl.zeros([1, LANES], tl.float32)
    for first in range(0, channels, LANES):
        c = (first + tl.arange(0, LANES))[None, :]
        mask = c < channels
        at = n * channels + c
        s1, s2 = merge_sums(parts, at, mask, values, chunks, 1, BLOCK_CHUNKS, LANES)
        tl.store(instance_sums + at, s1, mask=mask)
        tl.store(instance_sums + values + at, s2, mask=mask)
        mean, off, var = mixed(
            instance, layer, batch, p_ln, p_bn, q_in, q_ln, q_bn, n, c, instances, channels,
            mask, IN, LN, BN,
        )  # fmt: skip
        factor = tl.where(mask, 1.0, 0.0)
        if weight is not None:
            factor *= tl.load(weight + c, mask=mask, other=0.0).to(tl.float32)
        g1, g2, _ = mixed_backward(s1, s2, off, var, factor, eps)
        g1 = tl.where(mask, g1, 0.0)
        g2 = tl.where(mask, g2, 0.0)
        # About the mixed moments: the sums of the scopes differ by little where all values are far
        # from zero, and only their differences matter.
        if IN:
            _, scope_var = moments_at(instance, at, values, mask)
            mean_in -= g1 * off
            var_in += g2 * (scope_var - var)
        if LN:
            g1_sum += g1
            g2_sum += g2
            scope_mean, scope_var = moments_at(layer, n + c * 0, instances, mask)
            mean_ln += g1 * ((scope_mean - mean) - off)
            var_ln += g2 * (scope_var - var)
        if BN:
            scope_mean, scope_var = moments_at(batch, c, channels, mask)
            mean_bn += g1 * ((scope_mean - mean) - off)
            var_bn += g2 * (scope_var - var)
    only = n + tl.arange(0, 1)
    if LN:
        tl.store(layer_sums + only, p_ln * tl.sum(g1_sum, 1))
        tl.store(layer_sums + instances + only, q_ln * tl.sum(g2_sum, 1))
    tl.store(logit_sums + only, tl.sum(mean_in, 1))
    tl.store(logit_sums + instances + only, tl.sum(mean_ln, 1))
    tl.store(logit_sums + instances * 2 + only, tl.sum(mean_bn, 1))
    tl.store(logit_sums + instances * 3 + only, tl.sum(var_in, 1))
    tl.store(logit_sums + instances * 4 + only, tl.sum(var_ln, 1))
    tl.store(logit_sums + instances * 5 + only, tl.sum(var_bn, 1))


@triton.jit
def _sums_of_batch(
    block,
    parts,
    instance,
    layer,
    batch,
    mean_weight,
    var_weight,
    weight,
    batch_sums,
    grad_weight,
    grad_bias,
    eps,
    instances,
    channels,
    chunks,
    IN: tl.constexpr,
    LN: tl.constexpr,
    BN: tl.constexpr,
    BLOCK_INSTANCES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    values = instances * channels
    p_in, p_ln, p_bn = importance(mean_weight, IN, LN, BN)
    q_in, q_ln, q_bn = importance(var_weight, IN, LN, BN)
    c = (block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS))[None, :]
    factor = tl.where(c < channels, 1.0, 0.0)
    if weight is not None:
        factor *= tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    g1_sum = tl.zeros([BLOCK_INSTANCES, BLOCK_CHANNELS], tl.float32)
    g2_sum = tl.zeros([BLOCK_INSTANCES, BLOCK_CHANNELS], tl.float32)
    weight_sum = tl.zeros([BLOCK_INSTANCES, BLOCK_CHANNELS], tl.float32)
    bias_sum = tl.zeros([BLOCK_INSTANCES, BLOCK_CHANNELS], tl.float32)
    for first in range(0, instances, BLOCK_INSTANCES):
        n = (first + tl.arange(0, BLOCK_INSTANCES))[:, None]
        mask = (n < instances) & (c < channels)
        at = n * channels + c
        s1, s2 = merge_sums(
            parts, at, mask, values, chunks, BLOCK_INSTANCES, BLOCK_CHUNKS, BLOCK_CHANNELS
        )
        mean, off, var = mixed(
            instance, layer, batch, p_ln, p_bn, q_in, q_ln, q_bn, n, c, instances, channels,
            mask, IN, LN, BN,
        )  # fmt: skip
        g1, g2, projection = mixed_backward(s1, s2, off, var, factor, eps)
        bias_sum += s1
        weight_sum += tl.where(mask, projection, 0.0)
        g1_sum += tl.where(mask, g1, 0.0)
        g2_sum += tl.where(mask, g2, 0.0)
    at = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    mask = at < channels
    if batch_sums is not None:
        tl.store(batch_sums + at, p_bn * tl.sum(g1_sum, 0), mask=mask)
        tl.store(batch_sums + channels + at, q_bn * tl.sum(g2_sum, 0), mask=mask)
    if grad_weight is not None:
        total = tl.sum(weight_sum, 0)
        tl.store(grad_weight + at, total.to(grad_weight.dtype.element_ty), mask=mask)
    if grad_bias is not None:
        total = tl.sum(bias_sum, 0)
        tl.store(grad_bias + at, total.to(grad_bias.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['instances', 'channels', 'chunks', *PARAMETERS])
def pool_gradients(
    parts,
    instance,
    layer,
    batch,
    mean_weight,
    var_weight,
    weight,
    instance_sums,
    layer_sums,
    batch_sums,
    logit_sums,
    grad_weight,
    grad_bias,
    eps,
    instances,
    channels,
    chunks,
    IN: tl.constexpr,
    LN: tl.constexpr,
    BN: tl.constexpr,
    BLOCK_INSTANCES: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    """All sums over positions, channels and instances; programs as those of ``pool``."""
    program = tl.program_id(0).to(tl.int64)
    instances, channels = instances.to(tl.int64), channels.to(tl.int64)
    chunks = chunks.to(tl.int64)
    if program < instances:
        _sums_of_instance(
            program, parts, instance, layer, batch, mean_weight, var_weight, weight, instance_sums,
            layer_sums, logit_sums, eps, instances, channels, chunks, IN, LN, BN,
            BLOCK_INSTANCES * BLOCK_CHANNELS, BLOCK_CHUNKS,
        )  # fmt: skip
    else:
        _sums_of_batch(
            program - instances, parts, instance, layer, batch, mean_weight, var_weight, weight,
            batch_sums, grad_weight, grad_bias, eps, instances, channels, chunks, IN, LN, BN,
            BLOCK_INSTANCES, BLOCK_CHUNKS, BLOCK_CHANNELS,
        )  # fmt: skip


@triton.jit
def _sum_over_instances(sums, instances, BLOCK_INSTANCES: tl.constexpr):
    lane = tl.arange(0, BLOCK_INSTANCES)
    lane_sum = tl.zeros([BLOCK_INSTANCES], tl.float32)
    for first in range(0, instances, BLOCK_INSTANCES):
        lane_sum += tl.load(sums + first + lane, mask=first + lane < instances, other=0.0)
    return tl.sum(lane_sum, 0)


@triton.jit
def _grad_logits(
    sums,
    factor,
    logits,
    grad_logits,
    instances,
    IN: tl.constexpr,
    LN: tl.constexpr,
    BN: tl.constexpr,
    BLOCK_INSTANCES: tl.constexpr,
):
    p_in, p_ln, p_bn = importance(logits, IN, LN, BN)
    grad_in, grad_ln, grad_bn = importance_backward(
        p_in,
        p_ln,
        p_bn,
        factor * _sum_over_instances(sums, instances, BLOCK_INSTANCES),
        factor * _sum_over_instances(sums + instances, instances, BLOCK_INSTANCES),
        factor * _sum_over_instances(sums + instances * 2, instances, BLOCK_INSTANCES),
    )
    dtype = grad_logits.dtype.element_ty
    if IN:
        tl.store(grad_logits, grad_in.to(dtype))
    if LN:
        tl.store(grad_logits + IN, grad_ln.to(dtype))
    if BN:
        tl.store(grad_logits + IN + LN, grad_bn.to(dtype))


@triton.jit(do_not_specialize=['instances', 'mean_weight', 'var_weight'])
def grad_logits(
    logit_sums,
    mean_weight,
    var_weight,
    grad_mean_weight,
    grad_var_weight,
    instances,
    IN: tl.constexpr,
    LN: tl.constexpr,
    BN: tl.constexpr,
    BLOCK_INSTANCES: tl.constexpr,
) -> None:
    """Gradients of the logits: one program."""
    instances = instances.to(tl.int64)
    # g1 is minus the gradient of mu, g2 minus twice that of the mixed variance.
    _grad_logits(
        logit_sums, -1.0, mean_weight, grad_mean_weight, instances, IN, LN, BN,
        BLOCK_INSTANCES,
    )  # fmt: skip
    _grad_logits(
        logit_sums + instances * 3, -0.5, var_weight, grad_var_weight, instances, IN, LN, BN,
        BLOCK_INSTANCES,
    )  # fmt: skip
