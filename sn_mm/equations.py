r"""The equations of Switchable Normalization, on (N, C) arrays.

Luo et al., *Differentiable Learning-to-Normalize via Switchable Normalization*, ICLR 2019,
arXiv 1806.10779, equations 3 to 5. Everything follows from the mean ``m`` and the variance ``v`` of
each instance and channel. The layer and the batch scope pool them over channels and over instances:

    mean = E[m],    var = E[v] + Var[m]        (never E[x^2] - E[x]^2)

and the softmax of the importance weights mixes the scopes:

    mu = sum_k p_k mean_k,    var = sum_k q_k var_k,    y = weight (x - mu) / sqrt(var + eps) + bias

*Moments* are one tensor of the means and the variances of a scope, so that an operation serves
both: (2, N, C) of the instance scope, (2, N, 1) of the layer scope, (2, 1, C) of the batch scope.
Likewise the softmax weights are one tensor (2, K), p above q.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .distributed import gather_moments, sum_over_ranks

SCOPES = ('in', 'ln', 'bn')
_AXES = {'ln': 2, 'bn': 1}


def pool(instance: Tensor, scope: str) -> Tensor:
    """Moments of the layer scope ('ln'), over channels, or of the batch scope ('bn')."""
    axis = _AXES[scope]
    pooled = instance.mean(axis, keepdim=True)
    mean, var = pooled.unbind()
    var += (instance[0] - mean).square_().mean(axis - 1, keepdim=True)
    return pooled


def pool_over_ranks(
    instance: Tensor, positions: int, process_group: ProcessGroup | None
) -> tuple[Tensor, int | Tensor]:
    """Moments of the batch scope over the ranks of ``process_group``, and the positions counted.

    Every position has the same weight, whatever the sizes of the maps on the ranks. A batch without
    positions has mean, variance and total 0.
    """
    _, n, c = instance.shape
    mine = pool(instance, 'bn') if n * positions else instance.new_zeros(2, 1, c)
    if process_group is None:
        return mine, n * positions
    counts, means, variances = gather_moments(n * positions, mine[0], mine[1], process_group)
    total = counts.sum()
    share = counts / total.clamp(min=1)
    mean = (share * means).sum(0, keepdim=True)
    var = (share * (variances + (means - mean).square())).sum(0, keepdim=True)
    return torch.stack((mean, var)), total


def _per_scope(weights: Tensor) -> tuple[Tensor, ...]:
    """The softmax weights (2, K) as K tensors (2, 1, 1)."""
    return weights.view(*weights.shape, 1, 1).unbind(1)


def mix(weights: Tensor, scopes: Sequence[Tensor]) -> Tensor:
    """``sum_k weights_k * scopes_k``: mu and the mixed variance, (2, N or 1, C or 1).

    Args:
        weights: The softmax weights (2, K).
        scopes: The moments of the K scopes.
    """
    first, *others = _per_scope(weights)
    mixed = first * scopes[0]
    for weight, scope in zip(others, scopes[1:]):
        mixed = torch.addcmul(mixed, scope, weight)
    return mixed


def mix_backward(
    grad: Tensor,
    weights: Tensor,
    normalizers: Sequence[str],
    scopes: dict[str, Tensor],
    positions: int,
    total: int | Tensor | None,
    process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """From the gradient of the mixed moments to those of what they were mixed from.

    Args:
        grad: (2, N, C), of mu and of **twice** the mixed variance; only linear functions are taken
            of it, so a common factor may be left for later.
        weights: The softmax weights (2, K).
        normalizers: The K scopes.
        scopes: Their moments by name, and always those of 'in'.
        positions: Of one map.
        total: What :func:`pool_over_ranks` counted; None where the batch scope is held fixed.
        process_group: As there.

    Returns:
        The gradient of the instance moments (2, N, C), of twice the variance again; that of the
        importance before the softmax (2, K), of the variances' twice as well.
    """
    mean = scopes['in'][0]
    per_scope = dict(zip(normalizers, _per_scope(weights)))
    grad_instance = grad * per_scope['in'] if 'in' in per_scope else torch.zeros_like(grad)
    grad_mean, grad_weights = grad_instance[0], []
    for scope, weight in per_scope.items():
        sums = grad if scope == 'in' else grad.sum(_AXES[scope], keepdim=True)
        grad_weights.append((sums * scopes[scope]).sum((1, 2)))
        if scope == 'in' or (scope == 'bn' and total is None):
            continue
        sums *= weight
        share: float | Tensor = 1 / grad.shape[2]
        if scope == 'bn':
            share = positions / (total.clamp(min=1) if isinstance(total, Tensor) else total or 1)
            if process_group is not None:
                sums = sum_over_ranks(sums, process_group)
        sums *= share
        # The scope's mean is sum share m, its variance sum share (v + (m - mean)^2).
        grad_instance += sums
        grad_mean.addcmul_(mean - scopes[scope][0], sums[1])
    stacked = torch.stack(grad_weights, 1)
    return grad_instance, torch._softmax_backward_data(stacked, weights, 1, weights.dtype)
