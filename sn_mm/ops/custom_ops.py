"""The sweeps as operators of PyTorch's own, which ``torch.compile`` takes as they are.

While it traces, this is the backend, and what calls it the actual one. So the (N, C) algebra
between the sweeps is compiled, into few kernels, and a model with SN is one graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import backend_for, dense, stats_dtype

_LIBRARY = torch.library.Library('sn_mm', 'FRAGMENT')


def define_operator(schema: str, run: Callable, shapes: Callable) -> Callable:
    """Makes ``torch.ops.sn_mm.<name>``.

    Args:
        schema: ``name(Tensor x, ...) -> Tensor``. The operator has no gradient of its own, writes
            to no input and gives a new tensor.
        run: What it does.
        shapes: The same on tensors without data.
    """
    name = schema[: schema.index('(')]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, 'CompositeExplicitAutograd')
    _LIBRARY._register_fake(name, shapes)
    return getattr(torch.ops.sn_mm, name)


def _moments(x: Tensor) -> Tensor:
    mean, var, _ = backend_for(x).moments(x, stats_dtype(x.dtype))
    return torch.stack((mean, var))


def _apply(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return backend_for(x).apply(x, scale.contiguous(), shift.contiguous())


def _grad_sums(dy: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    dy = dense(dy, like=x)  # whatever format the compiled graph has it in
    return torch.stack(backend_for(x).grad_sums(dy, x, mean.contiguous()))


def _grad_input(dy: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    dy = dense(dy, like=x)
    return backend_for(x).grad_input(dy, x, *(t.contiguous() for t in (mean, a, b, c)))


_moments_op = define_operator(
    'moments(Tensor x) -> Tensor',
    _moments,
    lambda x: x.new_empty(2, *x.shape[:2], dtype=stats_dtype(x.dtype)),
)
_apply_op = define_operator(
    'apply(Tensor x, Tensor scale, Tensor shift) -> Tensor',
    _apply,
    lambda x, scale, shift: torch.empty_like(x),
)
_grad_sums_op = define_operator(
    'grad_sums(Tensor dy, Tensor x, Tensor mean) -> Tensor',
    _grad_sums,
    lambda dy, x, mean: mean.new_empty(2, *mean.shape),
)
_grad_input_op = define_operator(
    'grad_input(Tensor dy, Tensor x, Tensor mean, Tensor a, Tensor b, Tensor c) -> Tensor',
    _grad_input,
    lambda dy, x, *arrays: torch.empty_like(x),
)


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, None]:
    mean, var = _moments_op(x).unbind()
    return mean, var, None


def apply(x: Tensor, scale: Tensor, shift: Tensor, spare: None = None) -> Tensor:
    return _apply_op(x, scale, shift)


def grad_sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    sum_dy, sum_dy_xc = _grad_sums_op(dy, x, mean).unbind()
    return sum_dy, sum_dy_xc


def grad_input(dy: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _grad_input_op(dy, x, mean, a, b, c)
