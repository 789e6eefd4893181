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

``triton`` takes float32, float16 and bfloat16 maps on CUDA where Triton works, ``aten`` all others.
The environment variable ``SN_MM_BACKEND``, read at import, sets one of them for all maps.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..tracing import is_compiling
from . import aten

__all__ = ['backend_for', 'dense', 'stats_dtype']

_FORCED = os.environ.get('SN_MM_BACKEND', '')
if _FORCED not in ('', 'aten', 'triton'):
    raise ValueError(
        f"the environment variable SN_MM_BACKEND must be 'aten', 'triton' or empty, got {_FORCED!r}"
    )


def backend_for(x: Tensor) -> ModuleType:
    """The backend that takes ``x``.

    Raises:
        ValueError: ``SN_MM_BACKEND=triton``, and Triton cannot take ``x``.
    """
    if is_compiling():
        from . import custom_ops

        return custom_ops
    if _FORCED == 'triton':
        return _forced_triton(x.device, x.dtype)
    if _FORCED == 'aten' or not x.is_cuda or x.dtype == torch.float64:
        return aten
    return _triton_or_aten(x.device)


@cache
def _triton_or_aten(device: torch.device) -> ModuleType:
    why = _no_triton(device)
    if why is None:
        from .triton import launch as triton

        return triton
    if why:
        warnings.warn(
            f"sn_mm takes PyTorch's own kernels, the slower ones, on {device}: {why}; "
            f'SN_MM_BACKEND=aten in the environment says that they are wanted',
            stacklevel=2,
        )
    return aten


@cache
def _forced_triton(device: torch.device, dtype: torch.dtype) -> ModuleType:
    why = _no_triton(device)
    if why is None and dtype == torch.float64:
        why = 'float64 maps are not among the float32, float16 and bfloat16 ones that it takes'
    if why is not None:
        raise ValueError(
            f'SN_MM_BACKEND=triton, but Triton cannot run on {device}: '
            f'{why or "it is not installed"}'
        )
    from .triton import launch as triton

    return triton


def _no_triton(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on ``device``, '' if it is not installed; None if they can.

    Triton compiles what it needs to start a kernel: without a C compiler it cannot.
    """
    try:
        from triton.runtime import driver

        from .triton.launch import INTERPRETED
    except ImportError:
        return ''
    if INTERPRETED:
        return None
    if device.type != 'cuda':
        return 'it needs a CUDA device, or TRITON_INTERPRET=1 in the environment'
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (7, 0):
        return 'it needs a GPU of compute capability 7.0 or later'
    try:
        driver.active.get_current_device()
    except Exception as error:  # whatever the compiler and the driver have to say
        return ' '.join(f'{type(error).__name__}: {error}'.split())
    return None


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
