"""The backend for the CPU: ``kernels.c``, compiled at first use and called through ctypes.

It takes float32, bfloat16 and float16; :mod:`sn_mm.ops.protocol` says what the functions do. Call
:func:`unavailable` before the first of them: it compiles and loads the kernels.

Where no ranks meet a pass is one call of C and not two, as calls from Python are most of the time
that a small input takes.
"""

from __future__ import annotations

import struct
import warnings
from ctypes import c_char_p, c_int
from functools import cache
from itertools import combinations
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...equations import SCOPES
from .. import aten
from ..protocol import Moments, Parameters, Running, Settings, Sums
from . import build

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FLOAT32 = torch.float32
_SCOPES = {  # their sets in numbers of kernels.c
    scopes: sum({'in': 1, 'ln': 2, 'bn': 4}[scope] for scope in scopes)
    for size in (1, 2, 3)
    for scopes in combinations(SCOPES, size)
}
_PASS = struct.Struct('20P10q3dP')  # struct pass of kernels.c
_GRAIN = 2**15  # values that are worth another thread, as in torch
_NO_PARAMETERS = _NO_GRADIENTS = (None,) * 4
_NO_SUMS = (None,) * 3
_NO_RUNNING = (None, None, None, 0.0)


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
    declare(library)
    if not library.sn_has_threads() and torch.get_num_threads() > 1:
        warnings.warn(
            'the CPU kernels of sn_mm run on one thread: this process has loaded no OpenMP runtime '
            'with GOMP_parallel (libgomp or libomp), whose threads they would take',
            stacklevel=2,
        )
    _kernels = library
    return None


def declare(library: Any) -> None:
    """Tells ctypes what the functions of the library take and give."""
    for name in ('sn_forward', 'sn_backward', 'sn_measure', 'sn_apply', 'sn_reduce'):
        function = getattr(library, name)
        function.argtypes, function.restype = [c_char_p], c_int


def forward(
    x: Tensor,
    parameters: Parameters,
    settings: Settings,
    running: Running | None,
    training: bool,
    keep: bool,
) -> tuple[Tensor, Moments]:
    y = torch.empty_like(x)
    moments = _read(
        _kernels.sn_forward, x, parameters, settings, running, training, keep, out=y
    )  # fmt: skip
    return y, moments


def measure(x: Tensor, settings: Settings, running: Running | None, training: bool) -> Moments:
    return _read(_kernels.sn_measure, x, _NO_PARAMETERS, settings, running, training, True)


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
    gradients = _new_gradients(parameters)
    _call(
        _kernels.sn_reduce, x, settings, moments, parameters, dy, sums, gradients,
        batch_given=not measured,
    )  # fmt: skip
    return sums, _in_their_dtypes(gradients, parameters)


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


def backward(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    parameters: Parameters,
    settings: Settings,
    measured: bool,
    to_input: bool,
) -> tuple[Tensor | None, Parameters]:
    dx = torch.empty_like(x) if to_input else None
    gradients = _new_gradients(parameters)
    _call(
        _kernels.sn_backward, x, settings, moments, parameters, dy, _NO_SUMS, gradients, dx,
        batch_given=not measured, total=x.numel() / x.shape[1],
    )  # fmt: skip
    return dx, _in_their_dtypes(gradients, parameters)


def _read(
    function: Any,
    x: Tensor,
    parameters: Parameters | tuple[None, ...],
    settings: Settings,
    running: Running | None,
    training: bool,
    keep: bool,
    out: Tensor | None = None,
) -> Moments:
    """Calls a function that measures ``x``; the moments, or with ``keep`` False perhaps none."""
    scopes = settings.scopes
    if 'bn' not in scopes:
        running = None
    moved = running if training else None
    beside = moved is not None and not _moves_inside(moved)
    moments: Moments = {}
    if keep or beside:
        n, c = x.shape[:2]
        moments['in'] = instance = x.new_empty(2, n, c, dtype=_FLOAT32)
        if 'ln' in scopes:
            moments['ln'] = instance.new_empty(2, n, 1)
        if 'bn' in scopes:
            moments['bn'] = instance.new_empty(2, 1, c)
    _call(
        function, x, settings, moments, parameters, out=out, running=None if beside else running,
        batch_given=running is not None and not training,
    )  # fmt: skip
    if moved is not None and beside:
        aten.move(moved, moments['bn'], x.numel() // x.shape[1], settings)
    return moments


def _call(
    function: Any,
    x: Tensor,
    settings: Settings,
    moments: Moments,
    parameters: Parameters | tuple[None, ...],
    dy: Tensor | None = None,
    sums: Sums | tuple[None, ...] = _NO_SUMS,
    gradients: Parameters | tuple[None, ...] = _NO_GRADIENTS,
    out: Tensor | None = None,
    running: Running | None = None,
    batch_given: bool = False,
    total: float = 0.0,
) -> None:
    """Packs ``struct pass`` and calls ``function`` with it."""
    shape = x.shape
    n, c = shape[0], shape[1]
    values = x.numel()
    positions = values // (n * c)
    get = moments.get
    mean, var, batches, momentum = _NO_RUNNING if running is None else running
    # What is converted is kept alive until the function returns.
    given = [
        t
        if t is None or t.dtype is _FLOAT32 and t.is_contiguous() and not t.is_neg()
        else t.to(_FLOAT32).contiguous().resolve_neg()
        for t in (*parameters, mean, var)
    ]
    tensors = (
        x, dy, out, get('in'), get('ln'), get('bn'), *sums, *given[:4], *gradients, *given[4:],
        batches,
    )  # fmt: skip
    failed = function(
        _PASS.pack(
            *[0 if t is None else t.data_ptr() or _no_memory(t) for t in tensors],
            n, c, positions, _TYPES[x.dtype],
            positions == 1 or not x.is_contiguous(),  # one position: N rows of C
            min(torch.get_num_threads(), 1 + values // _GRAIN),
            _SCOPES[settings.scopes],
            batch_given,
            settings.correction, momentum is None,
            settings.eps, momentum or 0.0, total, 0,
        )
    )  # fmt: skip
    if failed:
        raise MemoryError('the CPU kernels of sn_mm got no memory for their sums')


def _no_memory(t: Tensor) -> NoReturn:
    raise TypeError(f'the CPU kernels of sn_mm got a tensor without memory: {type(t).__name__}')


def _moves_inside(running: Running) -> bool:
    """Whether the kernels can move these running statistics."""
    mean, var, batches, _ = running
    return (
        mean.dtype is var.dtype is _FLOAT32
        and mean.is_contiguous()
        and var.is_contiguous()
        and not (mean.is_neg() or var.is_neg())
        and (batches is None or batches.dtype is torch.int64)
    )


def _new_gradients(parameters: Parameters) -> Parameters:
    return Parameters._make(
        [
            p if p is None
            else torch.empty_like(p) if p.dtype is _FLOAT32
            else torch.empty_like(p, dtype=_FLOAT32)
            for p in parameters
        ]
    )  # fmt: skip


def _in_their_dtypes(gradients: Parameters, parameters: Parameters) -> Parameters:
    for p in parameters:
        if p is not None and p.dtype is not _FLOAT32:
            pairs: Any = zip(gradients, parameters)
            return Parameters._make(None if p is None else g.to(p.dtype) for g, p in pairs)
    return gradients
