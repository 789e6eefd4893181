r"""The equations of Switchable Normalization, on (N, C) arrays.

Luo et al., *Differentiable Learning-to-Normalize via Switchable Normalization*, ICLR 2019,
arXiv 1806.10779, equations 3 to 5. Everything follows from the mean ``m`` and the variance ``v`` of
each instance and channel. The layer and the batch scope pool them over channels and over instances:

    mean = E[m],    var = E[v] + Var[m]        (never E[x^2] - E[x]^2)

and the softmax of the importance weights mixes the scopes:

    mu = sum_k p_k mean_k,    var = sum_k q_k var_k,    y = weight (x - mu) / sqrt(var + eps) + bias
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .distributed import gather_moments, sum_over_ranks

SCOPES = ('in', 'ln', 'bn')


class Moments(NamedTuple):
    """Mean and variance of one scope, in a shape that broadcasts to (N, C)."""

    mean: Tensor
    var: Tensor


class BatchMoments(NamedTuple):
    """Moments of the batch scope, (1, C) each, and the number of positions behind them."""

    mean: Tensor
    var: Tensor
    total: int | Tensor


def layer_moments(instance: Moments) -> Moments:
    """Pools (N, C) moments over channels: (N, 1) each."""
    if not instance.mean.numel():  # torch.var_mean warns
        return Moments(*instance.mean.new_zeros(2, instance.mean.shape[0], 1))
    spread, mean = torch.var_mean(instance.mean, 1, correction=0, keepdim=True)
    return Moments(mean, spread + instance.var.mean(1, keepdim=True))


def batch_moments(
    instance: Moments, positions: int, process_group: ProcessGroup | None = None
) -> BatchMoments:
    """Pools (N, C) moments over instances, and over the ranks of ``process_group``: (1, C) each.

    Every position has the same weight, whatever the sizes of the maps on the ranks. A batch without
    positions has mean, variance and total 0.
    """
    n, c = instance.mean.shape
    if n * positions:
        spread, mean = torch.var_mean(instance.mean, 0, correction=0, keepdim=True)
        var = spread + instance.var.mean(0, keepdim=True)
    else:
        mean, var = instance.mean.new_zeros(2, 1, c)
    if process_group is None:
        return BatchMoments(mean, var, n * positions)
    counts, means, variances = gather_moments(n * positions, mean, var, process_group)
    total = counts.sum()
    share = counts / total.clamp(min=1)
    mean = (share * means).sum(0, keepdim=True)
    var = (share * (variances + (means - mean).square())).sum(0, keepdim=True)
    return BatchMoments(mean, var, total)


def mix(weights: Tensor, scopes: Sequence[Tensor]) -> Tensor:
    """``sum_k weights_k * scopes_k``; weights (K,), scopes broadcastable to (N, C)."""
    first, *others = weights.unbind()
    mixed = first * scopes[0]
    for weight, scope in zip(others, scopes[1:]):
        mixed = torch.addcmul(mixed, scope, weight)
    return mixed


class Gradients(NamedTuple):
    """Of the instance moments, (N, C) each, and of the K weights before the softmax, (K,) each."""

    mean: Tensor
    var: Tensor
    mean_weight: Tensor
    var_weight: Tensor


def mix_backward(
    d_mu: Tensor,
    d_var: Tensor,
    p: Tensor,
    q: Tensor,
    normalizers: Sequence[str],
    scopes: Mapping[str, Moments],
    positions: int,
    total: int | Tensor | None,
    process_group: ProcessGroup | None = None,
) -> Gradients:
    """From the gradients of the mixed moments to those of what they were mixed from.

    Args:
        d_mu, d_var: (N, C) each.
        p, q: The softmax weights of the means and of the variances, (K,) each.
        normalizers: The K scopes.
        scopes: Their moments by name, and always those of 'in'.
        positions: Of one map.
        total: What :func:`batch_moments` counted; None where the batch scope is held fixed.
        process_group: As in :func:`batch_moments`.
    """
    instance = scopes['in']
    d_m, d_v = torch.zeros_like(d_mu), torch.zeros_like(d_var)
    d_p, d_q = [], []
    for name, p_k, q_k in zip(normalizers, p.unbind(), q.unbind()):
        mean, var = scopes[name]
        if name == 'in':
            d_p.append((d_mu * mean).sum())
            d_q.append((d_var * var).sum())
            d_m.addcmul_(d_mu, p_k)
            d_v.addcmul_(d_var, q_k)
            continue
        axis = 1 if name == 'ln' else 0
        sums = Moments(d_mu.sum(axis, keepdim=True), d_var.sum(axis, keepdim=True))
        d_p.append((sums.mean * mean).sum())
        d_q.append((sums.var * var).sum())
        if name == 'bn' and total is None:
            continue
        sums = Moments(sums.mean * p_k, sums.var * q_k)
        share: float | Tensor = 1 / d_mu.shape[1]
        if name == 'bn':
            share = positions / (total.clamp(min=1) if isinstance(total, Tensor) else total or 1)
            if process_group is not None:
                sums = Moments(*sum_over_ranks(torch.stack(sums), process_group))
        # The scope's mean is sum share m, its variance sum share (v + (m - mean)^2).
        d_pooled = Moments(sums.mean * share, sums.var * share)
        d_m.add_(d_pooled.mean).addcmul_(instance.mean - mean, d_pooled.var, value=2)
        d_v.add_(d_pooled.var)
    return Gradients(d_m, d_v, _softmax_backward(p, d_p), _softmax_backward(q, d_q))


def _softmax_backward(weights: Tensor, grads: Sequence[Tensor]) -> Tensor:
    grad = torch.stack(tuple(grads))
    return weights * (grad - (weights * grad).sum())
