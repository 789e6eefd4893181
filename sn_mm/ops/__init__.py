r"""The four sweeps over the feature map. Everything else in SN works on small (N, C) arrays.

A backend is one module with these functions. ``x`` and ``dy`` are (N, C, \*S), not empty, dense in
one and the same memory format (see :func:`dense`); all other tensors are (N, C) in
:func:`stats_dtype`:

- ``moments(x, dtype) -> (mean, var, spare)``: mean and biased variance over S, in ``dtype``, and a
  map like ``x`` that is free to be written to, or None;
- ``apply(x, scale, shift, spare=None) -> y``: ``scale * x + shift``, dtype and format of ``x``,
  written into ``spare`` if given, never a view;
- ``grad_sums(dy, x, mean) -> (sum_dy, sum_dy_xc)``: sums of ``dy`` and ``dy * (x - mean)`` over S;
- ``grad_input(dy, x, mean, a, b, c) -> dx``: ``a * dy + b * (x - mean) + c``, as ``x``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import aten as backend

__all__ = ['backend', 'dense', 'stats_dtype']


def stats_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the statistics of inputs of ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _memory_format(x: Tensor) -> torch.memory_format:
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` itself where it is dense in the memory format of ``like`` (default: x), else a copy.

    Formats are contiguous, channels_last and channels_last_3d; any other becomes contiguous.
    """
    return x.contiguous(memory_format=_memory_format(x if like is None else like))
