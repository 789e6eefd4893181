r"""The equations of Switchable Normalization.

Luo et al., *Differentiable Learning-to-Normalize via Switchable Normalization*, ICLR 2019,
arXiv 1806.10779, equations 3 to 5. Everything follows from the mean ``m`` and the variance ``v`` of
each instance and channel. The layer and the batch scope pool them over channels and over instances:

    mean = E[m],    var = E[v] + Var[m]        (never E[x^2] - E[x]^2 in float32)

and the softmax of the logits mixes the scopes:

    mu = sum_k p_k mean_k,    var = sum_k q_k var_k,    y = weight (x - mu) r + bias,
    r = 1 / sqrt(var + eps)

*Moments* are one tensor of the means and the variances of a scope, so that an operation serves
both: (2, N, C) of the instance scope, (2, N, 1) of the layer scope, (2, 1, C) of the batch scope.
Likewise the importance is one tensor (2, K), p above q.

:func:`switch_norm` is all of it in ordinary differentiable operations. The other functions are the
steps of the two passes, whose backward is derived by hand (:mod:`sn_mm.autograd`).
"""

# No postponed annotations: TorchScript reads those of switch_norm and of the functions it calls.
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from ._compat import is_recorded_strictly

SCOPES = ('in', 'ln', 'bn')

Moments = dict[str, Tensor]
"""Means above variances by scope: 'in' (2, N, C), always; 'ln' (2, N, 1); 'bn' (2, 1, C)."""


class Settings(NamedTuple):
    """The settings of a layer that are not tensors.

    Attributes:
        scopes: The scopes that are mixed, in the order in, ln, bn.
        eps: Added to the mixed variance.
        correction: 0: biased instance variances. 1: unbiased, times L / (L - 1) where L > 1; all
            scopes are pooled from these.
    """

    scopes: tuple[str, ...]
    eps: float
    correction: int


class Parameters(NamedTuple):
    """The logits (K,) of means and of variances; ``weight`` and ``bias`` (C,) or None.

    With one position per channel the logits of 'in' are masked (:func:`mask_instance`).
    """

    mean_weight: Tensor
    var_weight: Tensor
    weight: Optional[Tensor]
    bias: Optional[Tensor]


class Running(NamedTuple):
    """Running statistics of the batch scope.

    Attributes:
        mean, var: (C,).
        batches: Scalar int64, the number of batches seen, or None.
        momentum: Share of a new batch; None: 1 / batches, the new one counted.
    """

    mean: Tensor
    var: Tensor
    batches: Optional[Tensor]
    momentum: Optional[float]


class Sums(NamedTuple):
    """Sums of the backward pass.

    With S1 and S2 the sums over positions of ``dy`` and of ``dy * (x - m)``:

    Attributes:
        instance: (2, N, C), S1 above S2.
        layer: (2, N, 1) for 'ln', else None: minus the gradient of the scope's mean above minus
            twice that of its variance, p sum(g1) above q sum(g2) over channels, where
            g1 = weight r S1, g2 = weight r^2 (r (S2 + (m - mu) S1)) and p and q are the scope's
            importance.
        batch: (2, 1, C) for a 'bn' that was measured, else None: the same over instances. The
            importance is in it as that may differ between ranks: one with one position masks 'in'.
    """

    instance: Tensor
    layer: Optional[Tensor]
    batch: Optional[Tensor]


def stats_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which what is given in ``dtype`` is computed: float64 for it, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` itself if it has ``dtype`` already, for short graphs."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def unbiased(positions: int, correction: int) -> float:
    """The factor of the instance variances: 1 for ``correction`` 0 and for one position."""
    return positions / (positions - correction) if positions > 1 else 1.0


# --- Forward -------------------------------------------------------------------------------------


def pool(instance: Tensor, pivot: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    """Moments of the layer scope ('ln'), over channels, or of the batch scope ('bn').

    Args:
        instance: (2, N, C), with the means about ``pivot``.
        pivot: (N, C): far from zero a mean itself has few digits to spare.

    Returns:
        The moments, with the means about the second result, (N, 1) or (1, C).
    """
    axis = 2 if scope == 'ln' else 1
    centre = pivot[:, :1] if scope == 'ln' else pivot[:1]
    mean, var = instance.unbind(0)
    mean = mean + (pivot - centre)
    pooled = mean.mean(axis - 1, keepdim=True)
    spread = (mean - pooled).square().mean(axis - 1, keepdim=True)
    return torch.stack([pooled, var.mean(axis - 1, keepdim=True) + spread]), centre


def shifted(moments: Tensor, by: Tensor) -> Tensor:
    """The moments of a scope with ``by`` added to the means, broadcast to both."""
    mean, var = moments.unbind(0)
    mean = mean + by
    return torch.stack([mean, var.expand_as(mean)])


def contribute(batch: Tensor, count: int) -> Tensor:
    """The numbers that a rank adds to the batch scope, (2C + 1,) float64.

    [count, count * mean, count * (var + mean^2)]: in float64 E[x^2] - E[x]^2 is sound. At a mean of
    1e6 it costs 1e-4 of a unit variance, which float32 input does not resolve at that mean.

    Args:
        batch: (2, 1, C), the moments of 'bn' on this rank.
        count: Positions behind them, N L; 0 for an empty batch, whose moments are 0.
    """
    mean, var = batch[:, 0].double().unbind(0)
    return torch.cat([mean.new_full((1,), count), mean * count, (var + mean.square()) * count])


def unite(totals: Tensor, dtype: torch.dtype) -> Tensor:
    """Moments of 'bn' over all ranks, (2, 1, C) in ``dtype``, from the sum of the contributions.

    Every position has the same weight. Without positions the moments are 0.
    """
    mean, square = (totals[1:] / totals[0].clamp(min=1)).view(2, 1, -1).unbind(0)
    return torch.stack([mean, (square - mean.square()).clamp(min=0)]).to(dtype)


def move_running(
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Optional[Tensor],
    momentum: Optional[float],
    batch: Tensor,
    total: Tensor,
    correction: int,
) -> None:
    """Moves the running statistics towards the batch's, in place.

    Args:
        running_mean, running_var, num_batches_tracked, momentum: As :class:`Running` has them.
        batch: (2, 1, C), the moments of 'bn'.
        total: Scalar, the positions behind them; 0 leaves all as it is.
        correction: With 0 the variance becomes unbiased on its way.

    In float32 at least: a variance beyond the range of float16 must not become infinite before it
    is weighted.
    """
    seen = total > 0
    if num_batches_tracked is not None:
        num_batches_tracked.add_(seen)
    mean, var = batch.detach().to(stats_dtype(running_mean.dtype))[:, 0].unbind(0)
    if correction == 0:
        var = var * (total / (total - 1).clamp(min=1)).to(var.dtype)
    if momentum is not None:
        share = torch.full_like(mean[:1], momentum)
    else:
        assert num_batches_tracked is not None
        share = num_batches_tracked.clamp(min=1).to(mean.dtype).reciprocal()
    for running, new in [(running_mean, mean), (running_var, var)]:
        old = running.to(new.dtype)
        running.copy_(torch.where(seen, old * (1 - share) + new * share, old))


def mask_instance(logits: Tensor) -> Tensor:
    """``logits`` (..., K) with the first one, that of 'in', at -inf.

    With one position per channel an instance has no statistics of its own. The importance of 'in'
    is then 0, and so are all gradients through it.
    """
    return torch.nn.functional.pad(logits[..., 1:], [1, 0], value=float('-inf'))


def importance_of(mean_weight: Tensor, var_weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The importance of means above that of variances, (2, K)."""
    return _softmax(torch.stack([mean_weight, var_weight]), dtype)


def _softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Equation 5: the importance, from the logits (..., K)."""
    return in_dtype(logits, dtype).softmax(-1)


def importance_backward(grad: Tensor, importance: Tensor) -> Tensor:
    """Gradients of the logits, (2, K); those of the importance may be off by one number a row."""
    return importance * (grad - (grad * importance).sum(1, keepdim=True))


class Mixed(NamedTuple):
    """The mixed moments, each (N, C) or broadcast to it.

    Attributes:
        importance: That of means and that of variances, each (K,).
        off: mu - m, from differences of means: where all values lie far from zero mu itself has few
            digits to spare.
        var: The mixed variance.
        r: 1 / sqrt(var + eps).
        scale: ``weight * r``.
    """

    importance: tuple[Tensor, Tensor]
    off: Tensor
    var: Tensor
    r: Tensor
    scale: Tensor


def mixed(moments: Moments, parameters: Parameters, settings: Settings) -> Mixed:
    """Equation 4, with the mean about that of each instance and channel."""
    mean = moments['in'][0]
    # Compiled, to stack the logits first would be a kernel of its own.
    p = _softmax(parameters.mean_weight, mean.dtype)
    q = _softmax(parameters.var_weight, mean.dtype)
    off = torch.zeros_like(mean)
    var = torch.zeros_like(mean)
    for k, scope in enumerate(settings.scopes):
        scope_mean, scope_var = moments[scope].unbind()
        var = var + q[k] * scope_var
        if scope != 'in':
            off = off + p[k] * (scope_mean - mean)
    r = (var + settings.eps).rsqrt()
    scale = r if parameters.weight is None else r * parameters.weight.to(r.dtype)
    return Mixed((p, q), off, var, r, scale)


# --- Backward ------------------------------------------------------------------------------------


def reduce(
    instance: Tensor,
    moments: Moments,
    parameters: Parameters,
    settings: Settings,
    measured: bool,
) -> tuple[Sums, Parameters]:
    """From S1 and S2 to the sums of the wider scopes and the gradients of the parameters.

    Args:
        instance: (2, N, C), S1 above S2.
        measured: Whether 'bn' was measured, so that a gradient flows through it.

    Returns:
        The sums; the gradients, each with its parameter's shape and dtype.
    """
    p_and_q, off, var, r, scale = mixed(moments, parameters, settings)
    importance = torch.stack(p_and_q)
    s1, s2 = instance.unbind()
    sum_dy_xhat = r * (s2 - off * s1)
    g = torch.stack((scale * s1, scale * r * sum_dy_xhat))
    pooled = {'in': g, 'ln': g.sum(2, keepdim=True), 'bn': g.sum(1, keepdim=True)}
    # About the mixed moments, as only differences between scopes matter; first about m.
    about, rest = torch.stack((moments['in'][0], var)), torch.stack((off, torch.zeros_like(off)))
    by_scope = [(g * (moments[k] - about - rest)).sum((1, 2)) for k in settings.scopes]
    minus_mean, minus_twice_var = importance_backward(torch.stack(by_scope, 1), importance).unbind()
    of_scopes = dict(zip(settings.scopes, importance.view(2, -1, 1, 1).unbind(1)))
    sums = Sums(
        instance,
        pooled['ln'] * of_scopes['ln'] if 'ln' in of_scopes else None,
        pooled['bn'] * of_scopes['bn'] if 'bn' in of_scopes and measured else None,
    )
    gradients = -minus_mean, minus_twice_var * -0.5, sum_dy_xhat.sum(0), s1.sum(0)
    in_dtype = (None if p is None else g.to(p.dtype) for p, g in zip(parameters, gradients))
    return sums, Parameters(*in_dtype)  # type: ignore[arg-type]


def propagate(
    moments: Moments,
    sums: Sums,
    parameters: Parameters,
    settings: Settings,
    positions: int,
    total: Union[int, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients of ``dx = a * dy + b * (x - m) + c``, each (N, C).

    Args:
        sums: With ``batch`` summed over the ranks where synchronized.
        positions: L.
        total: Positions behind 'bn', over all ranks.

    A scope's mean is sum(part * m), its variance sum(part * (v + (m - mean)^2)), with parts of
    1 / C in the layer scope and L / total in the batch scope.
    """
    (p, q), off, _, r, scale = mixed(moments, parameters, settings)
    s1, s2 = sums.instance.unbind()
    mean = moments['in'][0]
    grad = torch.zeros_like(sums.instance)  # minus that of m above minus twice that of v
    part = {'ln': 1 / mean.shape[1], 'bn': positions / total}
    for scope in settings.scopes:
        if scope == 'in':
            g2 = scale * r * r * (s2 - off * s1)
            grad = grad + torch.stack((scale * s1 * p[0], g2 * q[0]))
            continue
        pooled = sums.layer if scope == 'ln' else sums.batch
        if pooled is not None:
            through = pooled * part[scope]
            grad = grad + through
            spread = (mean - moments[scope][0]) * through[1]
            grad = grad + torch.stack((spread, torch.zeros_like(spread)))
    c, b = (grad * (-1 / positions)).unbind()
    return scale.expand_as(mean), b * unbiased(positions, settings.correction), c


# --- From the input to the output ----------------------------------------------------------------


def switch_norm(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    training: bool,
    momentum: Optional[float],
    eps: float,
    normalizers: list[str],
    correction: int,
    num_batches_tracked: Optional[Tensor],
    two_passes: bool = True,
) -> Tensor:
    r"""Switchable Normalization in ordinary differentiable operations.

    For graphs that leave Python (TorchScript, ``torch.export``, ONNX), open to any batch and image
    size; for the transforms of ``torch.func`` and for second derivatives.

    Args:
        x: (N, C, \*S).
        normalizers: In the order in, ln, bn.
        two_passes: Correct the rounding of the means by another pass over the input, so that SN is
            as exact far from zero as BatchNorm. False: as exact as GroupNorm in a runtime. Default:
            True.

    The others, and the result, are those of :func:`sn_mm.functional.switch_norm`.
    """
    dtype = stats_dtype(x.dtype)
    wide = in_dtype(x if x.dim() > 2 else x.unsqueeze(2), dtype)
    axes = [i for i in range(2, wide.dim())]  # noqa: C416 (TorchScript)
    per_channel = [-1] + [1] * len(axes)
    positions = 1
    for i in axes:
        positions = positions * wide.size(i)

    pivot = wide.mean(axes, keepdim=True)
    rest: Optional[Tensor] = None
    if two_passes:
        pivot = torch.where(pivot.isfinite(), pivot, torch.zeros_like(pivot))  # inf - inf is NaN
        rest = (wide - pivot).mean(axes, keepdim=True)
    centred = wide - pivot if rest is None else wide - pivot - rest
    var = centred.square().mean(axes, keepdim=True)
    if correction:
        count = known_when_run(positions, wide)
        var = var * (count / (count - correction).clamp(min=1))

    if normalizers[0] == 'in':
        importance = _importance_at(mean_weight, var_weight, dtype, positions)
    else:
        importance = _numbers(importance_of(mean_weight, var_weight, dtype))
    p, q = importance[: len(normalizers)], importance[len(normalizers) :]
    offs: list[Tensor] = []
    variances: list[Tensor] = []
    for k, scope in enumerate(normalizers):
        if scope == 'in':
            variances.append(var * q[k])
            continue
        if scope == 'ln' or training or running_mean is None or running_var is None:
            axis = 1 if scope == 'ln' else 0
            mean, off, scope_var = _pool_about(pivot, rest, var, axis)
            if axis == 0 and running_mean is not None and running_var is not None:
                if x.numel() > 0:
                    move_running(
                        running_mean, running_var, num_batches_tracked, momentum,
                        torch.stack([mean, scope_var]).reshape([2, 1, -1]),
                        known_when_run(positions * wide.size(0), wide), correction,
                    )  # fmt: skip
        else:
            off = in_dtype(running_mean, dtype).reshape(per_channel) - pivot
            scope_var = in_dtype(running_var, dtype).reshape(per_channel)
        offs.append(off * p[k])
        variances.append(scope_var * q[k])

    std = (_sum(variances) + eps).sqrt()
    scale = (
        std.reciprocal() if weight is None else in_dtype(weight, dtype).reshape(per_channel) / std
    )
    shift = None if bias is None else in_dtype(bias, dtype).reshape(per_channel)
    if len(offs) > 0:
        shift = -_sum(offs) * scale if shift is None else shift - _sum(offs) * scale
    y = centred * scale
    y = in_dtype(y if shift is None else y + shift, x.dtype)
    return y if x.dim() > 2 else y.squeeze(2)


def is_open(size: int) -> bool:
    """Whether a size may be an input's that a graph leaves open while it is recorded."""
    if torch.jit.is_scripting():
        return False
    return not isinstance(size, int) or is_recorded_strictly()


def known_when_run(size: int, like: Tensor) -> Tensor:
    """``size`` as a tensor: while a graph is recorded it may be an input's, which is open."""
    return torch.scalar_tensor(size, dtype=torch.int64, device=like.device)


def _importance_at(
    mean_weight: Tensor, var_weight: Tensor, dtype: torch.dtype, positions: int
) -> list[Tensor]:
    """The importance as numbers, with 'in', which is masked for one position."""
    importance = _numbers(importance_of(mean_weight, var_weight, dtype))
    if not is_open(positions) and positions != 1:
        return importance
    mean_weight, var_weight = mask_instance(mean_weight), mask_instance(var_weight)
    masked = _numbers(importance_of(mean_weight, var_weight, dtype))
    if not is_open(positions):
        return masked
    one = known_when_run(positions, mean_weight) == 1
    return [torch.where(one, alone, usual) for alone, usual in zip(masked, importance)]


def _numbers(importance: Tensor) -> list[Tensor]:
    """(2, K) as 2K scalars, those of the means first."""
    return list(importance.flatten().unbind(0))


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _pool_about(
    pivot: Tensor, rest: Optional[Tensor], var: Tensor, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of a wider scope, that mean minus the instances', and its variance.

    Args:
        pivot, rest: The means of the instances are ``pivot + rest``: far from zero one number has
            few digits to spare.
        var: The variances of the instances.
        axis: 1 pools over channels, 0 over instances.
    """
    if rest is None:
        mean = pivot.mean(axis, keepdim=True)
        off = mean - pivot
    else:
        centre = pivot[:, :1] if axis == 1 else pivot[:1]
        means = rest + (pivot - centre)
        mean = means.mean(axis, keepdim=True)
        off = mean - means
        mean = mean + centre
    return mean, off, (var + off * off).mean(axis, keepdim=True)
