r"""The backend for float32, float16 and bfloat16 input on CUDA: both passes as Triton kernels.

A pass is two or three launches: one reads the input and leaves the moments, or the sums, of each
channel; a tiny one pools them over channels and over instances and does what else is (N, C)
algebra; one reads the input again and writes y or dx, mixing the scopes for each tile as it goes.
:mod:`sn_mm.ops.protocol` says what these functions do, and :mod:`sn_mm.ops.triton.kernels` what the
arguments of the kernels are.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, all of it runs on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..protocol import Moments, Parameters, Running, Settings, Sums
from . import kernels
from .tiling import pool_tile, tiling

INTERPRETED = not isinstance(kernels.moments, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter, which takes tensors of any device."""

# Channels of a program around the collective, instances of a step of `grad_logits`.
_BLOCK = 1024

forward = backward = None  # done in steps


def measure(x: Tensor, settings: Settings, running: Running | None, training: bool) -> Moments:
    n, c, positions = _sizes(x)
    has_batch = 'bn' in settings.scopes
    given = has_batch and running is not None and not training
    read = not given or settings.scopes != ('bn',)
    values = n * positions
    moments = {'in': _empty(x, 2, n, c)}
    if 'ln' in settings.scopes:
        moments['ln'] = _empty(x, 2, n, 1)
    if has_batch:
        moments['bn'] = _empty(x, 2, 1, c)
    with torch.cuda.device_of(x):
        pivot = parts = None
        chunks = chunk = 1
        if read:
            tiles = tiling(x, reduction=True)
            chunks, chunk = tiles.chunks, tiles.chunk
            pivot, parts = _empty(x, n, c), _empty(x, 2, chunks, n, c)
            kernels.moments[tiles.grid](x, pivot, parts, **tiles.arguments)
        tile = pool_tile(chunks)
        columns = triton.cdiv(c, tile['BLOCK_CHANNELS']) if has_batch else 0
        statistics = _running(running if has_batch else None, given)
        kernels.pool[n + columns,](
            pivot=pivot,
            parts=parts,
            instance=moments['in'],
            layer=moments.get('ln'),
            batch=moments.get('bn'),
            instances=n,
            channels=c,
            positions=positions,
            chunks=chunks,
            chunk=chunk,
            correction=_correction(positions, settings),
            unbiased=1.0 if settings.correction else values / max(values - 1, 1),
            READ=read,
            GIVEN=given,
            LN='ln' in settings.scopes,
            **statistics,
            **tile,
        )
        if has_batch and not given:
            _write_back(running, statistics)
    return moments


def contribute(batch: Tensor, count: int) -> Tensor:
    channels = batch.shape[2]
    contribution = batch.new_empty(2 * channels + 1, dtype=torch.float64)
    with torch.cuda.device_of(batch):
        kernels.contribute[triton.cdiv(channels, _BLOCK),](
            batch, contribution, channels, count, BLOCK_CHANNELS=_BLOCK
        )
    return contribution


def unite(
    totals: Tensor, dtype: torch.dtype, settings: Settings, running: Running | None
) -> Tensor:
    channels = totals.shape[0] // 2
    batch = totals.new_empty(2, 1, channels, dtype=dtype)
    with torch.cuda.device_of(totals):
        statistics = _running(running, totals=totals)
        kernels.unite[triton.cdiv(channels, _BLOCK),](
            contribution=totals,
            batch=batch,
            channels=channels,
            BIASED=not settings.correction,
            BLOCK_CHANNELS=_BLOCK,
            **statistics,
        )
        _write_back(running, statistics)
    return batch


def normalize(x: Tensor, moments: Moments, parameters: Parameters, settings: Settings) -> Tensor:
    y = torch.empty_like(x)
    tiles = tiling(x, reduction=False)
    with torch.cuda.device_of(x):
        kernels.apply[tiles.grid](
            x=x,
            y=y,
            eps=float(settings.eps),
            **_moments(moments),
            **_parameters(parameters),
            **_scopes(settings),
            **tiles.arguments,
        )
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
    parts = _empty(x, 2, tiles.chunks, n, c)
    logit_sums = _empty(x, 2, 3, n)
    sums = Sums(
        instance=_empty(x, 2, n, c),
        layer=_empty(x, 2, n, 1) if 'ln' in settings.scopes else None,
        batch=_empty(x, 2, 1, c) if measured and 'bn' in settings.scopes else None,
    )
    grads = Parameters(
        torch.empty_like(parameters.mean_weight), torch.empty_like(parameters.var_weight),
        *(None if p is None else torch.empty_like(p) for p in parameters[2:]),
    )  # fmt: skip
    scopes = _scopes(settings)
    tensors = _parameters(parameters)
    del tensors['bias']
    tile = pool_tile(tiles.chunks)
    needs_columns = any(t is not None for t in (sums.batch, grads.weight, grads.bias))
    columns = triton.cdiv(c, tile['BLOCK_CHANNELS']) if needs_columns else 0
    with torch.cuda.device_of(x):
        kernels.grad_sums[tiles.grid](dy, x, moments['in'], parts, **tiles.arguments)
        kernels.pool_gradients[n + columns,](
            parts=parts,
            instance_sums=sums.instance,
            layer_sums=sums.layer,
            batch_sums=sums.batch,
            logit_sums=logit_sums,
            grad_weight=grads.weight,
            grad_bias=grads.bias,
            eps=float(settings.eps),
            instances=n,
            channels=c,
            chunks=tiles.chunks,
            **_moments(moments),
            **tensors,
            **scopes,
            **tile,
        )
        kernels.grad_logits[1,](
            logit_sums=logit_sums,
            mean_weight=tensors['mean_weight'],
            var_weight=tensors['var_weight'],
            grad_mean_weight=grads.mean_weight,
            grad_var_weight=grads.var_weight,
            instances=n,
            BLOCK_INSTANCES=_BLOCK,
            **scopes,
        )
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
    tensors = _parameters(parameters)
    del tensors['bias']
    with torch.cuda.device_of(x):
        kernels.grad_input[tiles.grid](
            dy=dy,
            x=x,
            dx=dx,
            instance_sums=sums.instance,
            layer_sums=sums.layer,
            batch_sums=sums.batch,
            total=total,
            eps=float(settings.eps),
            correction=_correction(_sizes(x)[2], settings),
            TOTAL_IN_MEMORY=isinstance(total, Tensor),
            **_moments(moments),
            **tensors,
            **_scopes(settings),
            **tiles.arguments,
        )
    return dx


def _sizes(x: Tensor) -> tuple[int, int, int]:
    n, c = x.shape[:2]
    return n, c, x.numel() // (n * c)


def _empty(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _correction(positions: int, settings: Settings) -> float:
    """The factor of biased instance variances."""
    return positions / (positions - settings.correction) if positions > 1 else 1.0


def _moments(moments: Moments) -> dict[str, Tensor | None]:
    return {
        'instance': moments['in'],
        'layer': moments.get('ln'),
        'batch': moments.get('bn'),
    }


def _parameters(parameters: Parameters) -> dict[str, Tensor | None]:
    tensors = parameters._asdict().items()
    return {name: None if p is None else _in_memory(p) for name, p in tensors}


def _in_memory(t: Tensor) -> Tensor:
    """``t`` itself where its values lie in its memory one after the other, else a copy."""
    return t.resolve_neg().contiguous()


def _scopes(settings: Settings) -> dict[str, int]:
    """Which scopes are mixed, as numbers that kernels count with."""
    return {scope.upper(): int(scope in settings.scopes) for scope in ('in', 'ln', 'bn')}


def _running(
    running: Running | None, given: bool = False, totals: Tensor | None = None
) -> dict[str, Any]:
    """Running statistics as arguments of a kernel that moves them, or reads them if ``given``.

    Where their momentum is None the batch is counted here: see ``count_batch``.
    """
    arguments: dict[str, Any] = {
        'running_mean': None,
        'running_var': None,
        'batches': None,
        'momentum': 0.0,
        'CUMULATIVE': False,
    }
    if running is None:
        return arguments
    arguments |= {
        'running_mean': _in_memory(running.mean),
        'running_var': _in_memory(running.var),
    }
    if given:
        return arguments
    if running.momentum is None:
        kernels.count_batch[1,](running.batches, totals)
        return arguments | {'batches': running.batches, 'CUMULATIVE': True}
    return arguments | {'batches': running.batches, 'momentum': float(running.momentum)}


def _write_back(running: Running | None, arguments: dict[str, Any]) -> None:
    """Moves running statistics that are not contiguous, so that the kernel had copies."""
    if running is not None:
        for old, name in ((running.mean, 'running_mean'), (running.var, 'running_var')):
            if arguments[name] is not old:
                old.copy_(arguments[name])
