"""The four sweeps out of PyTorch's own kernels, on any device. Chosen by measurement.

Contiguous maps: to BatchNorm's kernels they are one image of N*C channels. These run near memory
speed where ``torch.var_mean`` and sums over the last axes do not, and take half-precision maps with
float32 statistics.

channels_last maps: (N, L, C) rows in memory. Where maps are few, BatchNorm's kernels take one map
after the other; where they are many and small, Welford's recurrence takes one position after the
other, in all maps at once. ``native_group_norm`` is no choice here: it has E[x^2] - E[x]^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


def _one_image(x: Tensor) -> Tensor:
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _rows(x: Tensor) -> Tensor:
    """A channels_last map as (N, L, C)."""
    return x.movedim(1, -1).flatten(1, -2)


def _map_by_map(rows: Tensor) -> bool:
    return rows.shape[0] <= rows.shape[1]


def _per_map(array: Tensor, x: Tensor) -> Tensor:
    return array.view(array.shape + (1,) * (x.dim() - 2))


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    n, c = x.shape[:2]
    if not x.is_contiguous():
        rows = _rows(x)
        return *(_map_moments(rows, dtype) if _map_by_map(rows) else _welford(rows, dtype)), None
    if x.is_cpu:
        one = None if x.dtype == dtype else torch.ones(c, dtype=dtype)
        spare, mean, rstd = torch.native_group_norm(x, one, one, n, c, x.numel() // (n * c), c, 0.0)
        return mean, rstd.pow_(-2), spare
    # On CUDA native_group_norm refuses half-precision maps with float32 statistics.
    mean, var = _batch_moments(_one_image(x), dtype)
    return mean.view(n, c), var.view(n, c), None


def _batch_moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    unused = torch.empty(x.shape[1], dtype=dtype, device=x.device)
    return torch.batch_norm_update_stats(x, unused, unused, 0.0)


def _map_moments(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    means, variances = zip(*(_batch_moments(image, dtype) for image in rows.unbind()))
    return torch.stack(means), torch.stack(variances)


def _welford(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    mean, var = torch.zeros(2, rows.shape[0], rows.shape[2], dtype=dtype, device=rows.device)
    delta = torch.empty_like(mean)
    for seen, row in enumerate(rows.unbind(1), 1):
        torch.sub(row, mean, out=delta)
        mean.add_(delta, alpha=1 / seen)
        var.addcmul_(delta, delta, value=(seen - 1) / seen)
    return mean, var.div_(rows.shape[1])


def apply(x: Tensor, scale: Tensor, shift: Tensor, spare: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x) if spare is None else spare
    if not x.is_contiguous():
        return torch.addcmul(_per_map(shift, x), x, _per_map(scale, x), out=y)
    zero, unused = scale.new_zeros(scale.numel()), scale.new_empty(0)
    torch.native_batch_norm(
        _one_image(x), scale.flatten(), shift.flatten(), zero, zero,
        training=False, momentum=0.0, eps=1.0, out=(_one_image(y), unused, unused),
    )  # fmt: skip
    return y


def grad_sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    if x.is_contiguous():
        sum_dy, sum_dy_xc = _batch_grad_sums(_one_image(dy), _one_image(x), mean.flatten())
        return sum_dy.view_as(mean), sum_dy_xc.view_as(mean)
    rows, grads = _rows(x), _rows(dy)
    if _map_by_map(rows):
        sums, sums_xc = zip(*map(_batch_grad_sums, grads.unbind(), rows.unbind(), mean.unbind()))
        return torch.stack(sums), torch.stack(sums_xc)
    sum_dy, sum_dy_xc, delta = (
        torch.zeros_like(mean),
        torch.zeros_like(mean),
        torch.empty_like(mean),
    )
    for grad, row in zip(grads.unbind(1), rows.unbind(1)):
        sum_dy += grad
        sum_dy_xc.addcmul_(torch.sub(row, mean, out=delta), grad)
    return sum_dy, sum_dy_xc


def _batch_grad_sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.ones_like(mean)
    _, sum_dy_xc, sum_dy = _batch_norm_backward(
        dy, x, one, None, None, mean, one, True, 0.0, [False, True, True]
    )
    return sum_dy, sum_dy_xc


def grad_input(dy: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    c = torch.addcmul(c, b, mean, value=-1)
    if x.dtype == mean.dtype:
        return apply(x, b, c).addcmul_(dy, _per_map(a, x))
    dx = torch.empty_like(x)
    images = max(1, 2**20 // x[0].numel())  # in float32 at one time
    a, b, c = (_per_map(t, x) for t in (a, b, c))
    for grad, part, out, *abc in zip(*(t.split(images) for t in (dy, x, dx, a, b, c))):
        out.copy_(torch.addcmul(abc[2], part, abc[1]).addcmul_(grad, abc[0]))
    return dx
