"""The importance of the scopes, and the moments that it mixes: device functions of all kernels."""

# mypy: allow-untyped-defs
import triton
import triton.language as tl

PARAMETERS = ['mean_weight', 'var_weight', 'weight']
"""No kernel is compiled for the alignment of these, which are not ours."""


@triton.jit
def importance(logits, IN: tl.constexpr, LN: tl.constexpr, BN: tl.constexpr):
    """The importance of 'in', 'ln' and 'bn': the softmax of their logits, 0 for other scopes.

    Any function whose results sum to 1 may stand here; :func:`importance_backward` is its
    derivative.
    """
    # In place of a scope that is not mixed another one's logit is read, and then dropped.
    of_in = tl.load(logits).to(tl.float32)
    of_ln = tl.load(logits + IN * LN).to(tl.float32)
    of_bn = tl.load(logits + (IN + LN) * BN).to(tl.float32)
    top = tl.maximum(of_in, tl.maximum(of_ln, of_bn))
    of_in = tl.exp(of_in - top) * IN
    of_ln = tl.exp(of_ln - top) * LN
    of_bn = tl.exp(of_bn - top) * BN
    total = of_in + of_ln + of_bn
    return of_in / total, of_ln / total, of_bn / total


@triton.jit
def importance_backward(p_in, p_ln, p_bn, grad_in, grad_ln, grad_bn):
    """Gradients of the logits; those of the importance may all be off by one number."""
    centre = p_in * grad_in + p_ln * grad_ln + p_bn * grad_bn
    return p_in * (grad_in - centre), p_ln * (grad_ln - centre), p_bn * (grad_bn - centre)


@triton.jit
def moments_at(moments, at, size, mask):
    """Mean and variance of a scope at offsets in arrays of ``size`` elements."""
    mean = tl.load(moments + at, mask=mask, other=0.0)
    return mean, tl.load(moments + size + at, mask=mask, other=0.0)


@triton.jit
def mixed(
    instance,
    layer,
    batch,
    p_ln,
    p_bn,
    q_in,
    q_ln,
    q_bn,
    n,
    c,
    instances,
    channels,
    mask,
    IN: tl.constexpr,
    LN: tl.constexpr,
    BN: tl.constexpr,
):
    """The instance mean, by how much the mixed mean is off it, and the mixed variance.

    They are those of instances ``n`` and channels ``c``, which broadcast to ``mask``. They are made
    of differences of means: where all values lie far from zero the mixed mean itself has few digits
    to spare.

    Args:
        p_ln, p_bn, q_in, q_ln, q_bn: The importance of the scopes' means and variances.
    """
    mean, instance_var = moments_at(instance, n * channels + c, instances * channels, mask)
    off = tl.where(mask, 0.0, 0.0)
    var = tl.where(mask, 0.0, 0.0)
    if IN:
        var += q_in * instance_var
    if LN:
        scope_mean, scope_var = moments_at(layer, n + c * 0, instances, mask)
        off += p_ln * (scope_mean - mean)
        var += q_ln * scope_var
    if BN:
        scope_mean, scope_var = moments_at(batch, c + n * 0, channels, mask)
        off += p_bn * (scope_mean - mean)
        var += q_bn * scope_var
    return mean, off, var


@triton.jit
def mixed_backward(s1, s2, off, var, weight, eps):
    """g1, g2 and the gradient of the weight, from S1 and S2: see :class:`sn_mm.equations.Sums`."""
    rstd = 1.0 / tl.sqrt(var + eps)
    grad_weight = rstd * (s2 - off * s1)
    scale = weight * rstd
    return scale * s1, scale * rstd * grad_weight, grad_weight
