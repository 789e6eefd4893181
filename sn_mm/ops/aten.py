"""The four sweeps out of PyTorch's own kernels, on any device. Chosen by measurement.

To BatchNorm's kernels a contiguous map is one image of N*C channels: they run near memory speed
where ``torch.var_mean`` and sums over the last axes do not, and accept half-precision maps with
float32 statistics. For channels_last maps broadcasting arithmetic is the faster way; there
``native_group_norm`` is no choice, since it takes the variance as E[x^2] - E[x]^2 in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _one_image(x: Tensor) -> Tensor:
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _per_map(array: Tensor, x: Tensor) -> Tensor:
    return array.view(array.shape + (1,) * (x.dim() - 2))


def _space(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    if not x.is_contiguous():
        mean = x.mean(_space(x), dtype=dtype)
        spare = torch.sub(x, _per_map(mean, x))
        return mean, spare.square_().mean(_space(x)), spare if spare.dtype == x.dtype else None
    n, c = x.shape[:2]
    if x.is_cpu:
        one = None if x.dtype == dtype else torch.ones(c, dtype=dtype)
        spare, mean, rstd = torch.native_group_norm(x, one, one, n, c, x.numel() // (n * c), c, 0.0)
        return mean, rstd.pow_(-2), spare
    # On CUDA native_group_norm refuses half-precision maps with float32 statistics.
    unused = torch.empty(n * c, dtype=dtype, device=x.device)
    mean, var = torch.batch_norm_update_stats(_one_image(x), unused, unused, 0.0)
    return mean.view(n, c), var.view(n, c), None


def apply(x: Tensor, scale: Tensor, shift: Tensor, spare: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x) if spare is None else spare
    if not x.is_contiguous():
        return torch.addcmul(_per_map(shift, x), x, _per_map(scale, x), out=y)
    scale, shift = scale.flatten(), shift.flatten()
    unused = scale.new_empty(0)
    torch.native_batch_norm(
        _one_image(x), scale, shift, torch.zeros_like(scale), torch.ones_like(scale),
        training=False, momentum=0.0, eps=0.0, out=(_one_image(y), unused, unused),
    )  # fmt: skip
    return y


def grad_sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    if not x.is_contiguous():
        products = torch.sub(x, _per_map(mean, x)).mul_(dy)
        return dy.sum(_space(x), dtype=mean.dtype), products.sum(_space(x))
    one = torch.ones_like(mean).flatten()
    _, sum_dy_xc, sum_dy = torch.ops.aten.native_batch_norm_backward(
        _one_image(dy), _one_image(x), one, None, None, mean.flatten(), one,
        True, 0.0, [False, True, True],
    )  # fmt: skip
    return sum_dy.view_as(mean), sum_dy_xc.view_as(mean)


def grad_input(dy: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    dx = apply(x.to(mean.dtype), b, torch.addcmul(c, b, mean, value=-1))
    return dx.addcmul_(dy, _per_map(a, x)).to(x.dtype)
