"""The backends that compute, one record each, and the choice of one.

The environment variable ``SN_MM_BACKEND``, read at import, sets one of them for all input.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from . import aten
from .protocol import Backend

__all__ = ['backend_for']


def backend_for(x: Tensor) -> Backend:
    """The backend that computes for ``x``; never ``custom_ops``, whose operators call this.

    Raises:
        InputError: ``SN_MM_BACKEND`` names one that cannot take ``x``.
    """
    if type(x) not in (Tensor, torch.nn.Parameter) or not x.numel():
        return aten
    return _chosen(_FORCED, x.device, x.dtype)


_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def _chosen(forced: str, device: torch.device, dtype: torch.dtype) -> Backend:
    if forced:
        return aten if forced == 'aten' else _forced(forced, device, dtype)
    for name, backend in _BACKENDS.items():
        if backend.device_type == device.type and dtype in _KERNEL_DTYPES:
            return _kernels_or_aten(name, device)
    return aten


@cache
def _kernels_or_aten(name: str, device: torch.device) -> Backend:
    why = _BACKENDS[name].unavailable(device)
    if why is None:
        return _BACKENDS[name].load()
    if why:
        warnings.warn(
            f"sn_mm takes PyTorch's own operations, the slower ones, on {device}: {why}; "
            f'SN_MM_BACKEND=aten in the environment says that they are wanted',
            stacklevel=2,
        )
    return aten


def _forced(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    why = _BACKENDS[name].unavailable(device)
    if why is None and dtype not in _KERNEL_DTYPES:
        why = f'{dtype} is not among float32, float16 and bfloat16, which it takes'
    if why is not None:
        raise InputError(
            f'SN_MM_BACKEND={name} cannot run on {device}: {why or "it is not installed"}'
        )
    return _BACKENDS[name].load()


def _cpu() -> Backend:
    from . import cpu

    return cpu


def _triton() -> Backend:
    from .triton import launch

    return launch


def _no_cpu(device: torch.device) -> str | None:
    """Why the C kernels cannot run on ``device``; None if they can."""
    from . import cpu

    return 'it needs a CPU tensor' if device.type != 'cpu' else cpu.unavailable()


def _no_triton(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on ``device``, '' if it is not installed; None if they can.

    Triton compiles a program of its own to start a kernel: without a C compiler it cannot. So one
    kernel is tried before it is trusted.
    """
    try:
        import triton

        if int(triton.__version__.partition('.')[0]) < 3:
            return f'it needs Triton 3.0 or later, and Triton {triton.__version__} is installed'
        from .triton import launch
    except ImportError:
        return ''
    if not launch.INTERPRETED:
        if device.type != 'cuda':
            return 'it needs a CUDA device, or TRITON_INTERPRET=1 in the environment'
        if torch.version.cuda and torch.cuda.get_device_capability(device) < (7, 0):
            return 'it needs a GPU of compute capability 7.0 or later'
    try:
        totals = torch.ones(3, dtype=torch.float64, device=device)
        launch.unite(totals, torch.float32, aten.Settings(('bn',), 1e-5, 0), None)
    except Exception as error:  # whatever the compiler and the driver have to say
        return ' '.join(f'{type(error).__name__}: {error}'.split())
    return None


class _Kernels(NamedTuple):
    """A backend of kernels.

    Attributes:
        device_type: Of the input that it takes.
        load: Imports its module, once it is known to be available.
        unavailable: Why it cannot run on a device, '' if it is not installed; None if it can.
    """

    device_type: str
    load: Callable[[], Backend]
    unavailable: Callable[[torch.device], str | None]


_BACKENDS = {
    'cpu': _Kernels('cpu', _cpu, _no_cpu),
    'triton': _Kernels('cuda', _triton, _no_triton),
}
_FORCED = os.environ.get('SN_MM_BACKEND', '')
if _FORCED not in ('', 'aten', *_BACKENDS):
    raise InputError(
        f'the environment variable SN_MM_BACKEND must be one of {("aten", *_BACKENDS)} or empty, '
        f'got {_FORCED!r}'
    )
