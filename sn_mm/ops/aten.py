"""The four sweeps out of PyTorch's own kernels, on any device.

To BatchNorm's kernels a contiguous map is one image of N*C channels, so that one call serves the
whole batch; a channels_last map is taken image by image. These kernels run near memory speed where
``torch.var_mean`` and broadcasting arithmetic do not, accept half-precision maps with float32
statistics, and find the variance about the mean. ``native_group_norm``, the fastest for moments,
does so in contiguous maps on CPU alone: in channels_last it takes E[x^2] - E[x]^2 in float32, and
its CUDA kernel refuses half-precision maps with float32 statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _images(*maps: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """The maps as (1, channels, ...), with their rows of the flattened (N, C) arrays."""
    n, c = maps[0].shape[:2]
    if maps[0].is_contiguous():
        yield slice(0, n * c), tuple(t.view(1, n * c, -1) for t in maps)
    else:
        for i in range(n):
            yield slice(i * c, (i + 1) * c), tuple(t[i : i + 1] for t in maps)


def _per_map(array: Tensor, x: Tensor) -> Tensor:
    return array.view(array.shape + (1,) * (x.dim() - 2))


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n, c = x.shape[:2]
    if x.is_cpu and x.is_contiguous():
        one = torch.ones(c, dtype=dtype, device=x.device)
        _, mean, rstd = torch.native_group_norm(x, one, one, n, c, x[0, 0].numel(), c, 0.0)
        return mean, rstd.pow(-2)
    mean, var = torch.zeros(2, n * c, dtype=dtype, device=x.device)
    for rows, (image,) in _images(x):
        mean[rows], var[rows] = torch.batch_norm_update_stats(image, mean[rows], var[rows], 1.0)
    return mean.view(n, c), var.view(n, c)


def apply(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.empty_like(x)
    scale, shift = scale.flatten(), shift.flatten()
    zero, one, unused = torch.zeros_like(scale), torch.ones_like(scale), scale.new_empty(0)
    for rows, (image, out) in _images(x, y):
        torch.native_batch_norm(
            image, scale[rows], shift[rows], zero[rows], one[rows],
            training=False, momentum=0.0, eps=0.0, out=(out, unused, unused),
        )  # fmt: skip
    return y


def grad_sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    n, c = x.shape[:2]
    sum_dy, sum_dy_xc = torch.empty(2, n * c, dtype=mean.dtype, device=x.device)
    mean = mean.flatten()
    one = torch.ones_like(mean)
    for rows, (image, grad) in _images(x, dy):
        _, sum_dy_xc[rows], sum_dy[rows] = torch.ops.aten.native_batch_norm_backward(
            grad, image, one[rows], None, None, mean[rows], one[rows],
            True, 0.0, [False, True, True],
        )  # fmt: skip
    return sum_dy.view(n, c), sum_dy_xc.view(n, c)


def grad_input(dy: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    dx = apply(x.to(mean.dtype), b, c - b * mean)
    return dx.addcmul_(dy, _per_map(a, x)).to(x.dtype)
