"""Both passes of Switchable Normalization, and the autograd function that they make.

Kept for backward: the input, the parameters, and O(NC) numbers, the moments of the scopes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from . import equations
from ._compat import Look, look_at_backward
from .distributed import Caller, sum_over_ranks
from .equations import Moments, Parameters, Running, Settings, Sums, in_dtype, stats_dtype
from .errors import InputError
from .ops import backend_for, custom_ops, dense
from .ops.protocol import Backend

__all__ = ['Batch', 'Call', 'SwitchNormFunction', 'forward_pass']


class Call(NamedTuple):
    """What a call of a layer is about, beside the input and the parameters.

    Attributes:
        running: Moved in training, else taken for 'bn'; None: 'bn' is measured, nothing moved.
        training: See ``running``.
        settings: The layer's.
        process_group: The ranks that share the batch scope; None: this one alone.
        caller: The layer, for errors of the collective; None where a model is compiled.
        look: How PyTorch looks at the forward pass.
    """

    running: Running | None
    training: bool
    settings: Settings
    process_group: ProcessGroup | None
    caller: Caller | None
    look: Look


class Batch(NamedTuple):
    """The batch scope as it was measured.

    Attributes:
        moments: (2, 1, C).
        total: Positions behind it, over all ranks; a float64 scalar where synchronized.
    """

    moments: Tensor
    total: int | Tensor


def forward_pass(
    x: Tensor, parameters: Parameters, call: Call, keep: bool
) -> tuple[Tensor, Moments, Batch | None]:
    """The output, the moments of the scopes, and 'bn' where it was measured.

    Args:
        x: Dense (:func:`sn_mm.ops.dense`).
        keep: Whether more than the output is wanted.
    """
    running, training, settings, process_group, caller, look = call
    backend = _backend(x, look)
    measured = 'bn' in settings.scopes and (training or running is None)
    group = process_group if measured else None
    count = x.numel() // (x.shape[1] or 1) if measured else 0
    total: int | Tensor = count
    if group is None and backend.forward is not None:
        y, moments = backend.forward(x, parameters, settings, running, training, keep)
    else:
        moments = backend.measure(x, settings, running if group is None else None, training)
        if group is not None:
            totals = backend.contribute(moments['bn'], count)
            totals = sum_over_ranks(totals, group, caller, 'forward')
            moments['bn'] = backend.unite(totals, moments['in'].dtype, settings, running)
            total = totals[0]
        y = backend.normalize(x, moments, parameters, settings)
    return y, moments, Batch(moments['bn'], total) if measured and keep else None


class SwitchNormFunction(torch.autograd.Function):
    """Arguments as :func:`forward_pass`'s, one by one. Compiled, it returns 'bn' too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean_weight: Tensor,
        var_weight: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        call: Call,
    ) -> Any:
        parameters = Parameters(mean_weight, var_weight, weight, bias)
        y, moments, batch = forward_pass(x, parameters, call, True)
        on_device = batch.total if batch and isinstance(batch.total, Tensor) else None
        ctx.save_for_backward(x, *parameters, on_device, *moments.values())
        ctx.constants = tuple(moments), call.settings
        ctx.measured = batch is not None
        ctx.process_group, ctx.caller = call.process_group, call.caller
        if not call.look.compiling:
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
        measured, needed = ctx.measured, ctx.needs_input_grad
        look = look_at_backward(dy)
        if look.ordinary:
            if ctx.process_group is not None:
                raise InputError(
                    'second derivatives (create_graph=True) and batches of gradients '
                    '(is_grads_batched=True) go through a layer with sync=False only, and this one '
                    'is synchronized over ranks'
                )
            moments = dict(zip(scopes, arrays))
            fixed = None if measured else moments.get('bn')
            return *_differentiable_backward(dy, x, parameters, fixed, settings, needed), None

        if not look.compiling:  # which does not know dy's format; the operators do this themselves
            # Hooks on saved tensors may give them another layout or dtype; dy has that of x.
            x, stats = dense(in_dtype(x, dy.dtype)), stats_dtype(dy.dtype)
            arrays = [in_dtype(t, stats).contiguous() for t in arrays]
            dy = dense(dy, like=x)
        moments = dict(zip(scopes, arrays))
        to_input = needed[0] and x.numel() > 0
        backend = _backend(x, look)
        group = ctx.process_group if measured else None
        if group is None and backend.backward is not None:
            dx, gradients = backend.backward(
                dy, x, moments, parameters, settings, measured, to_input
            )
        else:
            sums, gradients = backend.reduce(dy, x, moments, parameters, settings, measured)
            if group is not None:
                assert sums.batch is not None
                batch = sum_over_ranks(sums.batch, group, ctx.caller, 'backward')
                sums = Sums(sums.instance, sums.layer, batch)
            dx = None
            if to_input:
                total = x.numel() // x.shape[1] if on_device is None else on_device
                dx = backend.propagate(dy, x, moments, sums, parameters, settings, total)
        if needed[0] and dx is None:
            dx = torch.empty_like(x)
        wanted = [grad if need else None for grad, need in zip(gradients, needed[1:])]
        return dx, *wanted, None


def _backend(x: Tensor, look: Look) -> Backend:
    return custom_ops if look.operators else backend_for(x)


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
        grads = iter(
            torch.autograd.grad(y, wanted, dy, create_graph=create_graph, materialize_grads=True)
        )
    else:
        grads = iter([torch.zeros_like(t) for t in wanted])
    return [next(grads) if need and t is not None else None for t, need in zip(inputs, needed)]
