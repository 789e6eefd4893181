r"""Switchable Normalization as its paper writes it: slow, plain, in float64. Judge of every path.

Luo et al., arXiv 1806.10779, equations 2 to 5. Each scope's mean and variance are taken over its
own pixels, by definition: I_in = {(i, j)}, I_ln = {(c, i, j)}, I_bn = {(n, i, j)}. Gradients are
autograd's. ``inputs`` is a list of tensors that may differ in N and \*S: together they are one
batch, as the inputs of several ranks are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SCOPES = ('in', 'ln', 'bn')


class Result(NamedTuple):
    outputs: list[Tensor]
    running_mean: Tensor | None
    running_var: Tensor | None


def switch_norm(
    inputs: Sequence[Tensor],
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    normalizers: Sequence[str] = SCOPES,
    correction: int = 0,
) -> Result:
    """Normalizes ``inputs`` as one batch; returns the outputs and the new running statistics."""
    normalizers = [k for k in SCOPES if k in normalizers]
    maps = [rows(x) for x in inputs]
    if running_mean is not None:
        running_mean, running_var = running_mean.double(), running_var.double()
    if training or running_mean is None:
        batch_mean, batch_var = batch_scope(maps, correction)
    else:
        batch_mean, batch_var = running_mean, running_var

    outputs = []
    for x, given in zip(maps, inputs):
        # One position per channel has no statistics of its own (the paper's one-dimensional form).
        used = [k for k in normalizers if k != 'in' or x.shape[2] != 1]
        logits = [normalizers.index(k) for k in used]
        p = mean_weight.double()[logits].softmax(0)  # equation 5
        q = var_weight.double()[logits].softmax(0)
        mean = torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        var = torch.zeros_like(mean)
        for k, p_k, q_k in zip(used, p, q):
            if k == 'bn':
                mean_k, var_k = batch_mean[None], batch_var[None]
            else:
                mean_k, var_k = (instance_scope if k == 'in' else layer_scope)(x, correction)
            mean = mean + p_k * mean_k
            var = var + q_k * var_k
        y = (x - mean[:, :, None]) / torch.sqrt(var[:, :, None] + eps)  # equation 3
        if weight is not None:
            y = y * weight.double()[:, None]
        if bias is not None:
            y = y + bias.double()[:, None]
        outputs.append(y.reshape(given.shape))

    positions = sum(x.shape[0] * x.shape[2] for x in maps)
    if training and running_mean is not None and 'bn' in normalizers and positions:
        unbiased = batch_var.detach()
        if not correction:
            unbiased = unbiased * positions / max(positions - 1, 1)
        running_mean = (1 - momentum) * running_mean + momentum * batch_mean.detach()
        running_var = (1 - momentum) * running_var + momentum * unbiased
    return Result(outputs, running_mean, running_var)


def rows(x: Tensor) -> Tensor:
    """(N, C, L) in float64."""
    return x.double().reshape(*x.shape[:2], x.shape[2:].numel())


def moments(x: Tensor, normalizers: Sequence[str], correction: int) -> dict[str, Tensor]:
    """Mean above variance: 'in' (2, N, C); of ``normalizers`` 'ln' (2, N, 1), 'bn' (2, 1, C)."""
    x = rows(x)
    found = {'in': torch.stack(instance_scope(x, correction))}
    if 'ln' in normalizers:
        found['ln'] = torch.stack(layer_scope(x, correction))
    if 'bn' in normalizers:
        found['bn'] = torch.stack(batch_scope([x], correction))[:, None]
    return found


def backward_sums(
    dy: Tensor,
    x: Tensor,
    moments: Mapping[str, Tensor],
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None,
    normalizers: Sequence[str],
    eps: float,
    measured: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sums that ``reduce`` of a backend gives, as :class:`sn_mm.equations.Sums` defines them.

    Args:
        moments: As of :func:`moments`.
        measured: Whether 'bn' was measured, so that a gradient flows through it.
    """
    importance = torch.stack([w.double().softmax(0) for w in (mean_weight, var_weight)])
    of_scope = dict(zip(normalizers, importance.unbind(1)))
    moments = {scope: pair.double() for scope, pair in moments.items()}
    mu, var = (sum(of_scope[k][i] * moments[k][i] for k in normalizers) for i in range(2))
    mean, r = moments['in'][0], 1 / torch.sqrt(var + eps)
    w = 1 if weight is None else weight.double()
    s1 = rows(dy).sum(2)
    s2 = (rows(dy) * (rows(x) - mean[:, :, None])).sum(2)
    g = torch.stack((w * r * s1, w * r**3 * (s2 + (mean - mu) * s1)))

    def pooled(scope: str, dim: int) -> Tensor:
        return of_scope[scope][:, None, None] * g.sum(dim, keepdim=True)

    return (
        torch.stack((s1, s2)),
        pooled('ln', 2) if 'ln' in normalizers else None,
        pooled('bn', 1) if 'bn' in normalizers and measured else None,
    )


def instance_scope(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (N, C) over (i, j); without pixels 0."""
    n, c, positions = x.shape
    if positions == 0:
        return x.new_zeros(n, c), x.new_zeros(n, c)
    mean = x.sum(2) / positions
    squares = ((x - mean[:, :, None]) ** 2).sum(2)
    return mean, squares / (positions - correction if positions > 1 else 1)


def layer_scope(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (N, 1) over (c, i, j)."""
    n, c, positions = x.shape
    if correction:
        return released_scope(*instance_scope(x, 1), torch.ones_like(x[:, :, :1].sum(2)), 1)
    if positions == 0:
        return x.new_zeros(n, 1), x.new_zeros(n, 1)
    mean = x.sum((1, 2)) / (c * positions)
    var = ((x - mean[:, None, None]) ** 2).sum((1, 2)) / (c * positions)
    return mean[:, None], var[:, None]


def batch_scope(maps: Sequence[Tensor], correction: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) over the (n, i, j) of all inputs together; without pixels 0."""
    if correction:
        mean, var = (torch.cat(k) for k in zip(*(instance_scope(x, 1) for x in maps)))
        sizes = torch.cat([torch.full_like(x[:, :, :1].sum(2), x.shape[2]) for x in maps])
        mean, var = released_scope(mean, var, sizes, 0)
        return mean[0], var[0]
    pixels = torch.cat([x.transpose(0, 1).flatten(1) for x in maps], 1)  # (C, N L)
    count = max(pixels.shape[1], 1)
    mean = pixels.sum(1) / count
    return mean, ((pixels - mean[:, None]) ** 2).sum(1) / count


def released_scope(mean: Tensor, var: Tensor, sizes: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A wider scope as the authors' released code takes it from unbiased instance variances.

    It writes ``temp = var_in + mean_in ** 2; var = temp.mean(dim) - mean ** 2``.
    """
    total = sizes.sum(dim, keepdim=True).clamp(min=1)
    wide_mean = (sizes * mean).sum(dim, keepdim=True) / total
    temp = var + mean**2
    return wide_mean, (sizes * temp).sum(dim, keepdim=True) / total - wide_mean**2


def sparsestmax(logits: Sequence[float], radius: float) -> list[float]:
    """The importance of Sparse SN (arXiv 1903.03793), geometrically, in plain numbers.

    The point of the simplex nearest to the logits; inside of the circle of this radius about the
    centre, the point of the circle in its direction; and where that has left the simplex, the same
    on the face that is nearest.
    """

    def nearest(point: Sequence[float]) -> list[float]:
        low, high = max(point) - 1, max(point)
        for _ in range(200):  # the threshold, by bisection
            middle = (low + high) / 2
            total = sum(max(z - middle, 0) for z in point)
            low, high = (middle, high) if total > 1 else (low, middle)
        return [max(z - low, 0) for z in point]

    def pushed(point: Sequence[float], centre: Sequence[float], radius: float) -> list[float]:
        away = math.dist(point, centre)
        if away >= radius or away == 0:
            return list(point)
        return [c + (z - c) * radius / away for z, c in zip(point, centre)]

    count = len(logits)
    centre = [1 / count] * count
    if radius >= math.dist(centre, [1] + [0] * (count - 1)):
        return [float(k == logits.index(max(logits))) for k in range(count)]
    on_circle = pushed(nearest(logits), centre, radius)
    if min(on_circle) >= 0:
        return on_circle
    inside = nearest(on_circle)
    members = [z > 1e-12 for z in inside]
    face = [member / sum(members) for member in members]
    return pushed(inside, face, math.sqrt(max(radius**2 - math.dist(centre, face) ** 2, 0)))
