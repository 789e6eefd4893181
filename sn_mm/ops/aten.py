"""The reference backend: the equations in plain PyTorch operations, right on any device.

It holds temporary arrays as large as the input, which the kernels of the other backends do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import equations
from ..equations import Moments, Parameters, Running, Settings, Sums, stats_dtype

forward = backward = None  # done in steps


def _flat(x: Tensor) -> Tensor:
    """(N, C, L) in the dtype of the statistics."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:])).to(stats_dtype(x.dtype))


def _like(flat: Tensor, x: Tensor) -> Tensor:
    """A new tensor with shape, dtype and memory format of ``x``."""
    return torch.empty_like(x).copy_(flat.view(x.shape))


def measure(x: Tensor, settings: Settings, running: Running | None, training: bool) -> Moments:
    n, c = x.shape[:2]
    flat = _flat(x)
    moments = {}
    if 'bn' in settings.scopes and running is not None and not training:
        # Copies: a later batch, or DDP's broadcast, may move the buffers before the backward pass.
        moments['bn'] = torch.stack((running.mean, running.var)).to(flat.dtype).view(2, 1, c)
    if settings.scopes == ('bn',) and moments:
        return {'in': moments['bn'].repeat(1, n, 1), **moments}
    if x.numel():
        pivot = _pivot(flat[:, :, :1])
        var, mean = torch.var_mean(flat - pivot, 2, correction=0)
        var = var * equations.unbiased(flat.shape[2], settings.correction)
        instance, pivot = torch.stack((mean, var)), pivot.squeeze(2)
    else:
        instance, pivot = flat.new_zeros(2, n, c), flat.new_zeros(n, c)
    moments['in'] = equations.shifted(instance, pivot)
    for scope in settings.scopes:
        if scope not in moments and x.numel():
            moments[scope] = equations.shifted(*equations.pool(instance, pivot, scope))
        elif scope not in moments:
            moments[scope] = flat.new_zeros((2, n, 1) if scope == 'ln' else (2, 1, c))
    if training and running is not None:
        move(running, moments['bn'], n * flat.shape[2], settings)
    return moments


def _pivot(value: Tensor) -> Tensor:
    """What a sum runs about, so that numbers far from zero lose no digits: a value.

    Or 0, where inf - inf would be the NaN of an infinite mean.
    """
    return torch.where(value.isfinite(), value, torch.zeros_like(value))


def move(running: Running, batch: Tensor, total: int | Tensor, settings: Settings) -> None:
    """Moves the running statistics towards ``batch`` (2, 1, C), of ``total`` positions."""
    if not isinstance(total, Tensor):
        total = torch.full((), total, dtype=batch.dtype, device=batch.device)
    equations.move_running(
        running.mean, running.var, running.batches, running.momentum, batch, total,
        settings.correction,
    )  # fmt: skip


contribute = equations.contribute


def unite(
    totals: Tensor, dtype: torch.dtype, settings: Settings, running: Running | None
) -> Tensor:
    batch = equations.unite(totals, dtype)
    if running is not None:
        move(running, batch, totals[0], settings)
    return batch


def normalize(x: Tensor, moments: Moments, parameters: Parameters, settings: Settings) -> Tensor:
    # Pointwise in the input's own shape, with few numbers from the rest: torch.compile traces it.
    _, off, _, _, scale = equations.mixed(moments, parameters, settings)
    shift = -off * scale
    if parameters.bias is not None:
        shift = shift + parameters.bias.to(shift.dtype)
    per_channel = (*x.shape[:2], *(1 for _ in x.shape[2:]))
    mean, scale, shift = (t.reshape(per_channel) for t in (moments['in'][0], scale, shift))
    y = torch.addcmul(shift, x.to(mean.dtype) - mean, scale)
    return y.to(x.dtype)


def reduce(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    parameters: Parameters,
    settings: Settings,
    measured: bool,
) -> tuple[Sums, Parameters]:
    grad = _flat(dy)
    centred = _flat(x) - moments['in'][0].unsqueeze(2)
    instance = torch.stack((grad.sum(2), (grad * centred).sum(2)))
    return equations.reduce(instance, moments, parameters, settings, measured)


def propagate(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    sums: Sums,
    parameters: Parameters,
    settings: Settings,
    total: int | Tensor,
) -> Tensor:
    positions = math.prod(x.shape[2:])
    coefficients = equations.propagate(moments, sums, parameters, settings, positions, total)
    a, b, c = (t.unsqueeze(2) for t in coefficients)
    centred = _flat(x) - moments['in'][0].unsqueeze(2)
    return _like(torch.addcmul(torch.addcmul(c, b, centred), a, _flat(dy)), x)
