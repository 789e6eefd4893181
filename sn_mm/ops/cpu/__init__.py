"""The backend for the CPU: ``kernels.c``, compiled at first use and called through ctypes.

It takes float32, bfloat16 and float16; :mod:`sn_mm.ops.protocol` says what the functions do. Call
:func:`unavailable` before the first of them: it compiles and loads the kernels.
"""

from __future__ import annotations

import struct
from ctypes import c_char_p, c_int
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import aten
from ..protocol import Moments, Parameters, Running, Settings, Sums
from . import build

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PASS = struct.Struct('19P8q3dP')  # struct pass of kernels.c
_GRAIN = 2**15  # values that are worth another thread, as in torch


_kernels: Any = None  # the library, once unavailable() has loaded it


@cache
def unavailable() -> str | None:
    """Why this backend cannot be used here, in one line; None if it can.

    The first call compiles the kernels, which takes a second or two, or loads them from the cache.
    """
    global _kernels
    try:
        library = build.load()
    except build.BuildError as error:
        return str(error)
    for function in (library.sn_measure, library.sn_apply, library.sn_reduce):
        function.argtypes, function.restype = [c_char_p], c_int
    _kernels = library
    return None


def measure(x: Tensor, settings: Settings, running: Running | None, training: bool) -> Moments:
    n, c = x.shape[:2]
    moments: Moments = {}
    given = None
    if running is not None and not training and 'bn' in settings.scopes:
        given = torch.stack((running.mean.float(), running.var.float())).unsqueeze(1)
        if len(settings.scopes) == 1:
            return {'in': given.repeat(1, n, 1), 'bn': given}
    moments['in'] = x.new_empty((2, n, c), dtype=torch.float32)
    if 'ln' in settings.scopes:
        moments['ln'] = x.new_empty((2, n, 1), dtype=torch.float32)
    if given is None and 'bn' in settings.scopes:
        moments['bn'] = x.new_empty((2, 1, c), dtype=torch.float32)
    moves = running if training and 'bn' in settings.scopes else None
    inside = moves is not None and _plain(moves.mean) and _plain(moves.var)
    _call(
        _kernels.sn_measure,
        x,
        settings,
        moments,
        running=(moves.mean, moves.var) if moves is not None and inside else (None, None),
        momentum=_share(moves) if moves is not None and inside else 0.0,
    )
    if moves is not None and not inside:
        aten.move(moves, moments['bn'], x.numel() // c, settings)
    if given is not None:
        moments['bn'] = given
    return moments


contribute, unite = aten.contribute, aten.unite


def normalize(x: Tensor, moments: Moments, parameters: Parameters, settings: Settings) -> Tensor:
    y = torch.empty_like(x)
    _call(_kernels.sn_apply, x, settings, moments, parameters, out=y)
    return y


def reduce(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    parameters: Parameters,
    settings: Settings,
    measured: bool,
) -> tuple[Sums, Parameters]:
    sums = Sums(
        torch.empty_like(moments['in']),
        torch.empty_like(moments['ln']) if 'ln' in moments else None,
        torch.empty_like(moments['bn']) if measured and 'bn' in moments else None,
    )
    gradients = Parameters._make(
        None if p is None else x.new_zeros(p.shape, dtype=torch.float32) for p in parameters
    )
    _call(_kernels.sn_reduce, x, settings, moments, parameters, dy, sums, gradients)
    if any(p is not None and p.dtype != torch.float32 for p in parameters):
        pairs: Any = zip(gradients, parameters)
        gradients = Parameters._make(p if p is None else g.to(p.dtype) for g, p in pairs)
    return sums, gradients


def propagate(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    sums: Sums,
    parameters: Parameters,
    settings: Settings,
    total: int | Tensor,
) -> Tensor:
    dx = torch.empty_like(x)
    _call(_kernels.sn_apply, x, settings, moments, parameters, dy, sums, out=dx, total=float(total))
    return dx


def _call(
    function: Any,
    x: Tensor,
    settings: Settings,
    moments: Moments,
    parameters: Parameters | tuple[None, ...] = (None,) * 4,
    dy: Tensor | None = None,
    sums: Sums | tuple[None, ...] = (None,) * 3,
    gradients: Parameters | tuple[None, ...] = (None,) * 4,
    out: Tensor | None = None,
    running: tuple[Tensor | None, Tensor | None] = (None, None),
    momentum: float = 0.0,
    total: float = 0.0,
) -> None:
    """Packs ``struct pass`` and calls ``function`` with it: one argument is soonest converted."""
    n, c = x.shape[:2]
    values = x.numel()
    positions = values // (n * c)
    # Keeps converted copies alive until the function returns.
    tensors = [
        x, dy, out, moments['in'], moments.get('ln'), moments.get('bn'),
        *sums, *map(_float, parameters), *gradients, *running,
    ]  # fmt: skip
    failed = function(
        _PASS.pack(
            *[0 if t is None else t.data_ptr() or _no_memory(t) for t in tensors],
            n, c, positions, _TYPES[x.dtype],
            positions == 1 or not x.is_contiguous(),  # one position: N rows of C
            min(torch.get_num_threads(), 1 + values // _GRAIN),
            'in' in settings.scopes,
            settings.correction,
            settings.eps, momentum, total, 0,
        )
    )  # fmt: skip
    if failed:
        raise MemoryError('the CPU kernels of sn_mm got no memory for their sums')


def _no_memory(t: Tensor) -> NoReturn:
    raise TypeError(f'the CPU kernels of sn_mm got a tensor without memory: {type(t).__name__}')


def _plain(t: Tensor) -> bool:
    """Whether the kernels take ``t`` as it is."""
    return t.dtype == torch.float32 and t.is_contiguous() and not t.is_neg()


def _float(t: Tensor | None) -> Tensor | None:
    return t if t is None or _plain(t) else t.to(torch.float32).contiguous().resolve_neg()


def _share(running: Running) -> float:
    """The share of a new batch, which is counted."""
    if running.batches is not None:
        running.batches.add_(1)
    if running.momentum is not None:
        return running.momentum
    assert running.batches is not None
    return 1 / int(running.batches)
