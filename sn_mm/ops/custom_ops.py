"""The passes as operators of PyTorch's own, for ``torch.compile`` and for dispatch modes.

This is a backend too: each function calls an operator, whose body calls the backend that computes.
A compiled model with SN is one graph, fake tensors pass, and FLOP counters have something to count.
The operators write to no input: running statistics are moved beside them.

To ``torch.compile`` ``normalize`` is ordinary operations, which it fuses with the ReLU, the
addition and the casts around them. ``propagate`` is not: on a CPU that gained nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import equations
from .._compat import FLEXIBLE_LAYOUT, FLOP_REGISTRY, HAS_FAKES, is_compiling
from ..equations import Moments, Parameters, Running, Settings, Sums, stats_dtype
from . import aten
from .dispatch import backend_for
from .memory_format import dense

_LIBRARY = torch.library.Library('sn_mm', 'FRAGMENT')


def define_operator(schema: str, run: Callable, shapes: Callable) -> Callable:
    """Makes ``torch.ops.sn_mm.<name>``.

    Args:
        schema: ``name(Tensor x, ...) -> Tensor``. The operator has no gradient of its own, writes
            to no input, takes any layout and gives a new tensor.
        run: Its body.
        shapes: The same on tensors without data.
    """
    name = schema[: schema.index('(')]
    if not hasattr(torch.ops.sn_mm, name):  # a second import in one process has those of the first
        _LIBRARY.define(schema, tags=FLEXIBLE_LAYOUT)
        _LIBRARY.impl(name, run, 'CompositeExplicitAutograd')
        if HAS_FAKES:
            _LIBRARY._register_fake(name, shapes)
    return getattr(torch.ops.sn_mm, name)


# --- The operators, with flat arguments ----------------------------------------------------------

# Moments travel as three tensors, empty where a scope is not in use.
_MOMENTS = 'Tensor instance, Tensor layer, Tensor batch'
_LAYER = (
    'Tensor mean_weight, Tensor var_weight, Tensor? weight, Tensor? bias, '
    'str[] scopes, float eps, int correction'
)


def _pack(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    layer, batch = (moments.get(k, moments['in'].new_empty(0)) for k in ('ln', 'bn'))
    return moments['in'], layer, batch


def _unpack(instance: Tensor, layer: Tensor, batch: Tensor, scopes: Sequence[str]) -> Moments:
    moments = dict(zip(equations.SCOPES, (t.contiguous() for t in (instance, layer, batch))))
    return {k: t for k, t in moments.items() if k == 'in' or k in scopes}


def _measure(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    scopes: list[str],
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, None, None)
    settings = Settings(tuple(scopes), 0.0, correction)
    return _pack(backend_for(x).measure(dense(x), settings, running, False))


def _measure_shapes(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    scopes: list[str],
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    instance = x.new_empty(2, n, c, dtype=stats_dtype(x.dtype))
    layer = instance.new_empty((2, n, 1) if 'ln' in scopes else (0,))
    return instance, layer, instance.new_empty((2, 1, c) if 'bn' in scopes else (0,))


def _layer_of(
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scopes: list[str],
    eps: float,
    correction: int,
) -> tuple[Parameters, Settings]:
    parameters = Parameters(mean_weight, var_weight, weight, bias)
    return parameters, Settings(tuple(scopes), eps, correction)


def _normalize(x: Tensor, instance: Tensor, layer: Tensor, batch: Tensor, *flat: object) -> Tensor:
    parameters, settings = _layer_of(*flat)  # type: ignore[arg-type]
    moments = _unpack(instance, layer, batch, settings.scopes)
    return backend_for(x).normalize(dense(x), moments, parameters, settings)


def _reduce(
    dy: Tensor, x: Tensor, instance: Tensor, layer: Tensor, batch: Tensor, *flat: object
) -> tuple[Tensor, ...]:
    *layer_args, measured = flat
    parameters, settings = _layer_of(*layer_args)  # type: ignore[arg-type]
    moments = _unpack(instance, layer, batch, settings.scopes)
    x = dense(x)
    dy = dense(dy, like=x)
    backend = backend_for(x)
    sums, gradients = backend.reduce(dy, x, moments, parameters, settings, bool(measured))
    return tuple(sums.instance.new_empty(0) if t is None else t for t in (*sums, *gradients))


def _reduce_shapes(
    dy: Tensor, x: Tensor, instance: Tensor, layer: Tensor, batch: Tensor, *flat: object
) -> tuple[Tensor, ...]:
    *layer_args, measured = flat
    parameters, settings = _layer_of(*layer_args)  # type: ignore[arg-type]
    fixed = 'bn' in settings.scopes and not measured
    sums = instance, layer, instance.new_empty(0) if fixed else batch
    shaped = (instance.new_empty(0) if t is None else torch.empty_like(t) for t in parameters)
    return *(torch.empty_like(t) for t in sums), *shaped


def _propagate(
    dy: Tensor,
    x: Tensor,
    instance: Tensor,
    layer: Tensor,
    batch: Tensor,
    sums: Tensor,
    layer_sums: Tensor,
    batch_sums: Tensor,
    *flat: object,
) -> Tensor:
    *layer_args, total, positions = flat
    parameters, settings = _layer_of(*layer_args)  # type: ignore[arg-type]
    moments = _unpack(instance, layer, batch, settings.scopes)
    wider = (t.contiguous() if t.numel() else None for t in (layer_sums, batch_sums))
    x = dense(x)
    return backend_for(x).propagate(
        dense(dy, like=x), x, moments, Sums(sums.contiguous(), *wider), parameters, settings,
        positions if total is None else total,  # type: ignore[arg-type]
    )  # fmt: skip


_measure_op = define_operator(
    'measure(Tensor x, Tensor? running_mean, Tensor? running_var, str[] scopes, int correction) '
    '-> (Tensor, Tensor, Tensor)',
    _measure,
    _measure_shapes,
)
_normalize_op = define_operator(
    f'normalize(Tensor x, {_MOMENTS}, {_LAYER}) -> Tensor',
    _normalize,
    lambda x, *others: torch.empty_like(dense(x)),
)
_reduce_op = define_operator(
    f'reduce(Tensor dy, Tensor x, {_MOMENTS}, {_LAYER}, bool measured) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
    _reduce,
    _reduce_shapes,
)
_propagate_op = define_operator(
    f'propagate(Tensor dy, Tensor x, {_MOMENTS}, '
    f'Tensor sums, Tensor layer_sums, Tensor batch_sums, {_LAYER}, Tensor? total, SymInt positions)'
    ' -> Tensor',
    _propagate,
    lambda dy, x, *others: torch.empty_like(dense(x)),
)


# Operations on each element of the first input; a multiplication with an addition is two, as in
# torch's own formulas.
for _operator, _operations in (
    (_measure_op, 3),  # sum; difference, squared and summed
    (_normalize_op, 2),
    (_reduce_op, 4),  # sum; difference; product, summed
    (_propagate_op, 5),  # difference; a * dy + b * (x - m) + c
):
    FLOP_REGISTRY[_operator] = lambda x, *args, operations=_operations, **kwargs: (
        operations * x.numel()
    )


# --- The backend ---------------------------------------------------------------------------------

forward = backward = None  # done in steps
contribute, unite = aten.contribute, aten.unite


def measure(x: Tensor, settings: Settings, running: Running | None, training: bool) -> Moments:
    given = running is not None and not training and 'bn' in settings.scopes
    if is_compiling() and given and settings.scopes == ('bn',):  # nothing of the input is read
        return aten.measure(x, settings, running, training)
    fixed = (running.mean, running.var) if running is not None and given else (None, None)
    arrays = _measure_op(x, *fixed, list(settings.scopes), settings.correction)
    moments = {k: t for k, t in zip(equations.SCOPES, arrays) if k in ('in', *settings.scopes)}
    if training and running is not None:
        aten.move(running, moments['bn'], x.numel() // x.shape[1], settings)
    return moments


def normalize(x: Tensor, moments: Moments, parameters: Parameters, settings: Settings) -> Tensor:
    if is_compiling():  # pointwise: the compiler fuses it with its neighbours
        return aten.normalize(x, moments, parameters, settings)
    return _normalize_op(x, *_pack(moments), *_flat(parameters, settings))


def _flat(parameters: Parameters, settings: Settings) -> tuple:
    return *parameters, list(settings.scopes), settings.eps, settings.correction


def reduce(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    parameters: Parameters,
    settings: Settings,
    measured: bool,
) -> tuple[Sums, Parameters]:
    instance, layer, batch, *gradients = _reduce_op(
        dy, x, *_pack(moments), *_flat(parameters, settings), measured
    )
    sums = Sums(
        instance,
        layer if 'ln' in settings.scopes else None,
        batch if 'bn' in settings.scopes and measured else None,
    )
    given = (None if p is None else grad for p, grad in zip(parameters, gradients))
    return sums, Parameters(*given)  # type: ignore[arg-type]


def propagate(
    dy: Tensor,
    x: Tensor,
    moments: Moments,
    sums: Sums,
    parameters: Parameters,
    settings: Settings,
    total: int | Tensor,
) -> Tensor:
    none = sums.instance.new_empty(0)
    wider = (none if t is None else t for t in (sums.layer, sums.batch))
    counted = (total, 1) if isinstance(total, Tensor) else (None, total)
    return _propagate_op(
        dy, x, *_pack(moments), sums.instance, *wider, *_flat(parameters, settings), *counted
    )
