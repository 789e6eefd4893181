r"""The equations of Switchable Normalization, on (N, C) arrays.

Luo et al., *Differentiable Learning-to-Normalize via Switchable Normalization*, ICLR 2019,
arXiv 1806.10779, equations 3 to 5. Everything follows from the mean ``m`` and the variance ``v`` of
each instance and channel. The layer and the batch scope pool them over channels and over instances:

    mean = E[m],    var = E[v] + Var[m]        (never E[x^2] - E[x]^2)

and the softmax of the importance weights mixes the scopes:

    mu = sum_k p_k mean_k,    var = sum_k q_k var_k,    y = weight (x - mu) / sqrt(var + eps) + bias
"""

from __future__ import annotations

from collections.abc import Sequence
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
    mixed = weights[0] * scopes[0]
    for weight, scope in zip(weights[1:], scopes[1:]):
        mixed = mixed + weight * scope
    return mixed


def mix_backward(grad: Tensor, weights: Tensor, scopes: Sequence[Tensor]) -> Tensor:
    """Gradient of :func:`mix` for the logits of which ``weights`` is the softmax: (K,)."""
    grad_weights = torch.stack([(grad * scope).sum() for scope in scopes])
    return weights * (grad_weights - (weights * grad_weights).sum())


def layer_backward(grad: Moments, instance: Moments, mean: Tensor) -> Moments:
    """Gradient of :func:`layer_moments`; ``grad`` (N, C) is summed over channels."""
    sums = Moments(grad.mean.sum(1, keepdim=True), grad.var.sum(1, keepdim=True))
    return _pool_backward(sums, 1 / instance.mean.shape[1], instance, mean)


def batch_backward(
    grad: Moments,
    instance: Moments,
    mean: Tensor,
    positions: int,
    total: int | Tensor,
    process_group: ProcessGroup | None = None,
) -> Moments:
    """Gradient of :func:`batch_moments`; ``grad`` (N, C) is summed over instances and ranks."""
    sums = torch.stack([grad.mean.sum(0, keepdim=True), grad.var.sum(0, keepdim=True)])
    if process_group is not None:
        sums = sum_over_ranks(sums, process_group)
    share = positions / torch.as_tensor(total, dtype=sums.dtype, device=sums.device).clamp(min=1)
    return _pool_backward(Moments(*sums), share, instance, mean)


def _pool_backward(
    sums: Moments, share: float | Tensor, instance: Moments, mean: Tensor
) -> Moments:
    """Backward of mean = sum share m, var = sum share (v + (m - mean)^2); shares sum to 1."""
    grad_var = share * sums.var
    return Moments(share * sums.mean + 2 * grad_var * (instance.mean - mean), grad_var)
