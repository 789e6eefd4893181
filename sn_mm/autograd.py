"""Both passes of Switchable Normalization, and the autograd function that they make.

Kept for backward: the input, the parameters, and O(NC) numbers, the moments of the scopes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from . import equations
from ._compat import is_batched, is_compiling, is_transformed
from .distributed import Caller, sum_over_ranks
from .equations import Moments, Parameters, Running, Settings, Sums
from .errors import InputError
from .ops import backend_for, dense

__all__ = ['Batch', 'SwitchNormFunction', 'forward_pass']


class Batch(NamedTuple):
    """The batch scope as it was measured.

    Attributes:
        moments: (2, 1, C).
        total: Positions behind it, over all ranks; a float64 scalar where synchronised.
    """

    moments: Tensor
    total: int | Tensor


def forward_pass(
    x: Tensor,
    parameters: Parameters,
    running: Running | None,
    training: bool,
    settings: Settings,
    process_group: ProcessGroup | None,
    caller: Caller | None,
) -> tuple[Tensor, Moments, Batch | None]:
    """The output, the moments of the scopes, and 'bn' where it was measured.

    Args:
        x: Dense (:func:`sn_mm.ops.dense`).
        running: Moved in training, else taken for 'bn'; None: 'bn' is measured, nothing moved.
        caller: For errors of the collective.
    """
    backend = backend_for(x)
    measured = 'bn' in settings.scopes and (training or running is None)
    batch = None
    if measured and process_group is not None:
        moments = backend.measure(x, settings, None, True)
        totals = backend.contribute(moments['bn'], x.numel() // x.shape[1])
        totals = sum_over_ranks(totals, process_group, caller, 'forward')
        moments['bn'] = backend.unite(totals, moments['in'].dtype, settings, running)
        batch = Batch(moments['bn'], totals[0])
    else:
        moments = backend.measure(x, settings, running, training)
        if measured:
            batch = Batch(moments['bn'], x.numel() // x.shape[1])
    return backend.normalize(x, moments, parameters, settings), moments, batch


class SwitchNormFunction(torch.autograd.Function):
    """Arguments as :func:`forward_pass`'s, one by one; with ``give_batch`` it returns 'bn' too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean_weight: Tensor,
        var_weight: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Running | None,
        training: bool,
        settings: Settings,
        process_group: ProcessGroup | None,
        caller: Caller | None,
        give_batch: bool,
    ) -> Any:
        parameters = Parameters(mean_weight, var_weight, weight, bias)
        y, moments, batch = forward_pass(
            x, parameters, running, training, settings, process_group, caller
        )
        on_device = batch.total if batch and isinstance(batch.total, Tensor) else None
        ctx.save_for_backward(x, *parameters, on_device, *moments.values())
        ctx.constants = tuple(moments), settings
        ctx.measured = batch is not None
        ctx.process_group, ctx.caller = process_group, caller
        if not give_batch:
            return y
        if batch is None:
            return y, None, None
        ctx.mark_non_differentiable(*(t for t in batch if isinstance(t, Tensor)))
        return y, *batch

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        x, mean_weight, var_weight, weight, bias, on_device, *arrays = ctx.saved_tensors
        parameters = Parameters(mean_weight, var_weight, weight, bias)
        scopes, settings = ctx.constants
        moments = dict(zip(scopes, arrays))
        needed = ctx.needs_input_grad[:5]
        if not is_compiling() and _wants_ordinary_operations(dy):
            if ctx.process_group is not None:
                raise InputError(
                    'second derivatives (create_graph=True) and batches of gradients '
                    '(is_grads_batched=True) go through a layer with sync=False only, and this one '
                    'is synchronised over ranks'
                )
            grads = _differentiable_backward(
                dy, x, parameters, None if ctx.measured else moments.get('bn'), settings, needed
            )
            return *grads, *(None,) * 6

        if not is_compiling():  # which does not know dy's format; the operators do this themselves
            x = dense(x)  # hooks on saved tensors may give them another layout
            moments = {scope: t.contiguous() for scope, t in moments.items()}
            dy = dense(dy, like=x)
        backend = backend_for(x)
        sums, gradients = backend.reduce(dy, x, moments, parameters, settings, ctx.measured)
        if ctx.process_group is not None and sums.batch is not None:
            batch = sum_over_ranks(sums.batch, ctx.process_group, ctx.caller, 'backward')
            sums = Sums(sums.instance, sums.layer, batch)
        dx = None
        if needed[0] and x.numel():
            # Not kept from forward: a size that torch.compile takes as a variable gets lost there.
            here = x.numel() // x.shape[1] if ctx.measured else 1
            total = here if on_device is None else on_device
            dx = backend.propagate(dy, x, moments, sums, parameters, settings, total)
        elif needed[0]:
            dx = torch.empty_like(x)
        wanted = (grad if need else None for grad, need in zip(gradients, needed[1:]))
        return dx, *wanted, *(None,) * 6


def _wants_ordinary_operations(dy: Tensor) -> bool:
    """With ``create_graph=True`` gradients are enabled."""
    return torch.is_grad_enabled() or is_transformed() or is_batched(dy)


def _differentiable_backward(
    dy: Tensor,
    x: Tensor,
    parameters: Parameters,
    fixed: Tensor | None,
    settings: Settings,
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """The first derivatives, by differentiating the ordinary operations.

    They have a graph of their own where gradients are enabled.

    Args:
        fixed: (2, 1, C), the moments of 'bn' where it was not measured.
    """
    inputs = x, *parameters
    wanted = [t for t, need in zip(inputs, needed) if need and t is not None]
    mean, var = (None, None) if fixed is None else fixed[:, 0].unbind()
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        y = equations.switch_norm(
            x, parameters.mean_weight, parameters.var_weight, mean, var, parameters.weight,
            parameters.bias, False, None, settings.eps, list(settings.scopes), settings.correction,
            None,
        )  # fmt: skip
    if x.numel():
        grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=create_graph))
    else:
        grads = iter([torch.zeros_like(t) for t in wanted])
    return [next(grads) if need and t is not None else None for t, need in zip(inputs, needed)]
