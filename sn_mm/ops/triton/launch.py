r"""The backend for float32, float16 and bfloat16 input on CUDA: both passes as Triton kernels.

A pass is two or three launches: one reads the input and leaves the moments, or the sums, of each
channel; a tiny one pools them over channels and over instances and does what else is (N, C)
algebra; one reads the input again and writes y or dx, mixing the scopes for each tile as it goes.
:mod:`sn_mm.ops.protocol` says what these functions do, and :mod:`sn_mm.ops.triton.kernels` what the
arguments of the kernels are.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, all of it runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...equations import SCOPES, unbiased
from ..protocol import Moments, Parameters, Running, Settings, Sums
from . import kernels
from .start import start
from .tiling import ceil_div, pool_tile, tiling

INTERPRETED = not isinstance(kernels.moments, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter, which takes tensors of any device."""

# Channels of a program around the collective, instances of a step of `grad_logits`; their warps.
_BLOCK, _WARPS = 1024, 4

forward = backward = None  # done in steps


def measure(x: Tensor, settings: Settings, running: Running | None, training: bool) -> Moments:
    n, c, positions = _sizes(x)
    has_layer, has_batch = 'ln' in settings.scopes, 'bn' in settings.scopes
    given = has_batch and running is not None and not training
    read = not given or settings.scopes != ('bn',)
    values = n * positions
    instance = x.new_empty(2, n, c, dtype=torch.float32)
    moments = {'in': instance}
    if has_layer:
        moments['ln'] = instance.new_empty(2, n, 1)
    if has_batch:
        moments['bn'] = instance.new_empty(2, 1, c)
    with torch.cuda.device_of(x):
        pivot = parts = None
        chunks = chunk = 1
        if read:
            tiles = tiling(x, reduction=True)
            chunks, chunk = tiles.chunks, tiles.chunk
            pivot, parts = instance.new_empty(n, c), instance.new_empty(2, chunks, n, c)
            start(
                'moments', tiles.programs, (x, pivot, parts), tiles.sizes, tiles.constants,
                tiles.warps,
            )  # fmt: skip
        tile, warps = pool_tile(chunks)
        statistics = _statistics(running if has_batch else None, given)
        start(
            'pool',
            n + (ceil_div(c, tile[-1]) if has_batch else 0),
            (instance, moments.get('ln'), moments.get('bn'), pivot, parts, *statistics.tensors),
            (
                n, c, positions, chunks, chunk, statistics.momentum,
                unbiased(positions, settings.correction),
                1.0 if settings.correction else values / max(values - 1, 1),
            ),
            (read, given, statistics.cumulative, has_layer, *tile),
            warps,
        )  # fmt: skip
        if has_batch and not given:
            _write_back(running, statistics)
    return moments


def contribute(batch: Tensor, count: int) -> Tensor:
    channels = batch.shape[2]
    contribution = batch.new_empty(2 * channels + 1, dtype=torch.float64)
    with torch.cuda.device_of(batch):
        start(
            'contribute', ceil_div(channels, _BLOCK), (batch, contribution), (channels, count),
            (_BLOCK,), _WARPS,
        )  # fmt: skip
    return contribution


def unite(
    totals: Tensor, dtype: torch.dtype, settings: Settings, running: Running | None
) -> Tensor:
    channels = totals.shape[0] // 2
    batch = totals.new_empty(2, 1, channels, dtype=dtype)
    with torch.cuda.device_of(totals):
        statistics = _statistics(running, totals=totals)
        start(
            'unite', ceil_div(channels, _BLOCK), (totals, batch, *statistics.tensors),
            (channels, statistics.momentum),
            (not settings.correction, statistics.cumulative, _BLOCK), _WARPS,
        )  # fmt: skip
        _write_back(running, statistics)
    return batch


def normalize(x: Tensor, moments: Moments, parameters: Parameters, settings: Settings) -> Tensor:
    y = torch.empty_like(x)
    tiles = tiling(x, reduction=False)
    with torch.cuda.device_of(x):
        start(
            'apply', tiles.programs, (x, y, *_moments(moments), *_in_memory(parameters)),
            (float(settings.eps), *tiles.sizes), (*tiles.constants, *_mixed(settings.scopes)),
            tiles.warps,
        )  # fmt: skip
    return y


def reduce(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    parameters: Parameters,
    settings: Settings,
    measured: bool,
) -> tuple[Sums, Parameters]:
    n, c, _ = _sizes(x)
    tiles = tiling(x, reduction=True)
    instance, layer, batch = _moments(moments)
    parts = instance.new_empty(2, tiles.chunks, n, c)
    logit_sums = instance.new_empty(2, 3, n)
    sums = Sums(
        instance=torch.empty_like(instance),
        layer=None if layer is None else torch.empty_like(layer),
        batch=torch.empty_like(batch) if measured and batch is not None else None,
    )
    grads = Parameters._make(None if p is None else torch.empty_like(p) for p in parameters)
    mixed = _mixed(settings.scopes)
    mean_weight, var_weight, weight, _ = _in_memory(parameters)
    tile, warps = pool_tile(tiles.chunks)
    needs_columns = not (sums.batch is None and grads.weight is None and grads.bias is None)
    with torch.cuda.device_of(x):
        start(
            'grad_sums', tiles.programs, (dy, x, instance, parts), tiles.sizes, tiles.constants,
            tiles.warps,
        )  # fmt: skip
        start(
            'pool_gradients',
            n + (ceil_div(c, tile[-1]) if needs_columns else 0),
            (
                parts, instance, layer, batch, mean_weight, var_weight, weight, *sums, logit_sums,
                grads.weight, grads.bias,
            ),
            (float(settings.eps), n, c, tiles.chunks),
            (*mixed, *tile),
            warps,
        )  # fmt: skip
        start(
            'grad_logits', 1,
            (logit_sums, mean_weight, var_weight, grads.mean_weight, grads.var_weight), (n,),
            (*mixed, _BLOCK), _WARPS,
        )  # fmt: skip
    return sums, grads


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
    tiles = tiling(x, reduction=False)
    in_memory, as_number = ((total,), ()) if isinstance(total, Tensor) else ((), (total,))
    with torch.cuda.device_of(x):
        start(
            'grad_input',
            tiles.programs,
            (dy, x, dx, *_moments(moments), *sums, *_in_memory(parameters)[:3], *in_memory),
            (
                *as_number, float(settings.eps), unbiased(_sizes(x)[2], settings.correction),
                *tiles.sizes,
            ),
            (*tiles.constants, *_mixed(settings.scopes), bool(in_memory)),
            tiles.warps,
        )  # fmt: skip
    return dx


def _sizes(x: Tensor) -> tuple[int, int, int]:
    n, c = x.shape[:2]
    return n, c, x.numel() // (n * c)


def _moments(moments: Moments) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return moments['in'], moments.get('ln'), moments.get('bn')


def _in_memory(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Each itself where its values lie in its memory one after the other, else a copy."""
    return [
        t if t is None or t.is_contiguous() and not t.is_neg() else t.resolve_neg().contiguous()
        for t in tensors
    ]


@cache
def _mixed(scopes: tuple[str, ...]) -> tuple[int, ...]:
    """The constants IN, LN, BN, as numbers that kernels count with."""
    return tuple(int(scope in scopes) for scope in SCOPES)


class _Statistics(NamedTuple):
    """Running statistics as arguments of a kernel that moves or reads them.

    Attributes:
        tensors: ``running_mean``, ``running_var``, ``batches``.
        momentum: For a kernel that moves them.
        cumulative: Whether the momentum is None.
    """

    tensors: tuple[Tensor | None, Tensor | None, Tensor | None]
    momentum: float
    cumulative: bool


_NO_STATISTICS = _Statistics((None, None, None), 0.0, False)


def _statistics(
    running: Running | None, given: bool = False, totals: Tensor | None = None
) -> _Statistics:
    """Arguments of a kernel that moves running statistics, or reads them if ``given``.

    Where their momentum is None the batch is counted here: see ``count_batch``.
    """
    if running is None:
        return _NO_STATISTICS
    mean, var = _in_memory((running.mean, running.var))
    if given:
        return _Statistics((mean, var, None), 0.0, False)
    if running.momentum is None:
        start('count_batch', 1, (running.batches, totals), (), (), _WARPS)
        return _Statistics((mean, var, running.batches), 0.0, True)
    return _Statistics((mean, var, running.batches), float(running.momentum), False)


def _write_back(running: Running | None, statistics: _Statistics) -> None:
    """Moves running statistics that are not contiguous, so that the kernel had copies."""
    if running is not None:
        for old, moved in zip(running[:2], statistics.tensors):
            if moved is not old:
                assert moved is not None
                old.copy_(moved)
