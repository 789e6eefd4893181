"""The forward and the backward pass of Switchable Normalization: two sweeps each, small algebra.

Nothing here is recorded by autograd: :mod:`sn_mm.functional` puts the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from . import ops
from .equations import SCOPES, mix, mix_backward, pool, pool_over_ranks


class Saved(NamedTuple):
    """What backward needs beside the input and ``weight``: O(NC) numbers.

    Means and standard deviations that can be had from these in a few small operations are not kept:
    on 14x14 maps one more (N, C) array is 0.5 % of the input.
    """

    weights: Tensor  # (2, K), softmax of the importance
    instance: Tensor  # (2, N, C)
    rstd: Tensor  # (N, C), of the mix
    layer: Tensor | None  # (2, N, 1)
    batch: Tensor | None  # (2, 1, C)
    total: int | Tensor | None  # positions behind ``batch``, None where it was given


class Gradients(NamedTuple):
    """As the inputs that they belong to; of the importance (K',) after the scopes left out."""

    x: Tensor | None
    mean_weight: Tensor
    var_weight: Tensor
    weight: Tensor
    bias: Tensor


def used_normalizers(x: Tensor, normalizers: Sequence[str]) -> Sequence[str]:
    """With one position per map an instance has no statistics of its own: 'in' is left out."""
    return [k for k in normalizers if k != 'in'] if math.prod(x.shape[2:]) == 1 else normalizers


def _unbiased(positions: int, correction: int) -> float:
    return positions / (positions - correction) if positions > 1 else 1.0


def forward_pass(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    normalizers: Sequence[str],
    correction: int,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Saved]:
    """Arguments as :func:`sn_mm.functional.switch_norm`'s; ``x`` is dense (:func:`ops.dense`).

    The batch scope is ``running_mean`` and ``running_var`` where given, else measured.
    """
    dtype = ops.stats_dtype(x.dtype)
    positions = math.prod(x.shape[2:])
    normalizers = used_normalizers(x, normalizers)
    importance = torch.stack((mean_weight, var_weight)).to(dtype)
    if importance.shape[1] > len(normalizers):
        importance = importance[:, 1:]
    weights = importance.softmax(1)

    scopes: dict[str, Tensor] = {}
    total = spare = None
    if 'bn' in normalizers and running_mean is not None and running_var is not None:
        # A copy: training, or DDP's broadcast, may move the buffers before the backward pass.
        scopes['bn'] = torch.stack((running_mean, running_var)).to(dtype).unsqueeze(1)
    if x.numel() == 0:
        instance = torch.zeros(2, *x.shape[:2], dtype=dtype, device=x.device)
    elif 'bn' in scopes and len(normalizers) == 1:
        # No sweep: where the sums of backward are centred is all that it would be for.
        instance = scopes['bn'].expand(2, *x.shape[:2]).contiguous()
    else:
        mean, var, spare = ops.backend_for(x).moments(x, dtype)
        instance = torch.stack((mean, var))
        unbiased = _unbiased(positions, correction)
        if unbiased != 1:
            instance[1].mul_(unbiased)
    scopes['in'] = instance
    if 'ln' in normalizers:
        scopes['ln'] = pool(instance, 'ln')
    if 'bn' in normalizers and 'bn' not in scopes:
        scopes['bn'], total = pool_over_ranks(instance, positions, process_group)

    mu, var = mix(weights, [scopes[k] for k in normalizers]).unbind()
    rstd = (var + eps).rsqrt_()
    if 'in' not in normalizers:
        rstd = rstd.expand_as(instance[0]).contiguous()
    scale = rstd if weight is None else rstd * weight.to(dtype)
    offset = mu.new_zeros(()) if bias is None else bias.to(dtype)
    shift = torch.addcmul(offset, mu, scale, value=-1)
    y = ops.backend_for(x).apply(x, scale, shift, spare) if x.numel() else torch.empty_like(x)
    return y, Saved(weights, instance, rstd, scopes.get('ln'), scopes.get('bn'), total)


def backward_pass(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Saved,
    needs_input_grad: bool,
    normalizers: Sequence[str],
    correction: int,
    process_group: ProcessGroup | None,
) -> Gradients:
    """From the gradient of the output to those of the inputs; ``saved`` by :func:`forward_pass`."""
    weights, instance, rstd, layer, batch, total = saved
    positions = math.prod(x.shape[2:])
    normalizers = used_normalizers(x, normalizers)
    kept = zip(SCOPES, (instance, layer, batch))
    scopes = {scope: moments for scope, moments in kept if moments is not None}
    mean = instance[0]
    scale = rstd if weight is None else rstd * weight.to(rstd.dtype)

    if x.numel():
        dy = ops.dense(dy, like=x)
        sum_dy, sum_dy_xc = ops.backend_for(x).grad_sums(dy, x, mean)
    else:
        sum_dy, sum_dy_xc = torch.zeros_like(instance)
    mu = mix(weights, [scopes[k] for k in normalizers])[0]
    sum_dy_xhat = torch.addcmul(sum_dy_xc, mean - mu, sum_dy).mul_(rstd)
    # Minus the gradients of mu and of twice the mixed variance.
    grad = torch.stack((sum_dy, rstd * sum_dy_xhat)).mul_(scale)
    grad, importance = mix_backward(
        grad, weights, normalizers, scopes, positions, total, process_group
    )

    dx = None
    if needs_input_grad and x.numel():
        c, b = grad.mul_(-1 / positions).unbind()
        unbiased = _unbiased(positions, correction)
        if unbiased != 1:
            b.mul_(unbiased)
        dx = ops.backend_for(x).grad_input(dy, x, mean, scale, b, c)
    elif needs_input_grad:
        dx = torch.empty_like(x)
    mean_weight, var_weight = importance.unbind()
    return Gradients(
        dx, mean_weight.neg_(), var_weight.mul_(-0.5), sum_dy_xhat.sum(0), sum_dy.sum(0)
    )
