"""The memory formats that the backends take."""

from __future__ import annotations

import torch
from torch import Tensor

from .._compat import is_compiling

__all__ = ['dense']


def _memory_format(x: Tensor) -> torch.memory_format:
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` itself where it is dense in the memory format of ``like`` (default: x), else a copy.

    Formats are contiguous, channels_last and channels_last_3d; any other becomes contiguous. A
    tensor whose values are not in its memory (a lazy negation, a lazy zero) is copied too.
    """
    x = x.contiguous(memory_format=_memory_format(x if like is None else like))
    if is_compiling():  # the operators, when they run, get such tensors resolved
        return x
    return x.clone() if x.is_neg() or x._is_zerotensor() else x
