"""Switchable Normalization as a function, with its hand-written backward."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from . import equations
from ._compat import (
    Look,
    constant_in_graphs,
    is_exporting,
    is_exporting_onnx,
    look_at,
    traceable,
)  # fmt: skip
from .autograd import Call, SwitchNormFunction, forward_pass
from .distributed import Caller, check_group
from .equations import SCOPES, Parameters, Running, Settings, mask_instance
from .errors import DtypeError, InputError, check_number, check_type
from .ops import aten, dense

__all__ = ['canonical_normalizers', 'normalize', 'switch_norm']


_CANONICAL = {
    subset for k in range(1, len(SCOPES) + 1) for subset in itertools.combinations(SCOPES, k)
}


_SMALLEST = torch.finfo(torch.float32).tiny


def canonical_normalizers(normalizers: Iterable[str]) -> tuple[str, ...]:
    """Checks ``normalizers`` and returns them in the order in, ln, bn.

    Raises:
        InputError: Unknown, repeated or no normalizers.
    """
    if isinstance(normalizers, tuple) and normalizers in _CANONICAL:
        return normalizers
    one = isinstance(normalizers, str) or not isinstance(normalizers, Iterable)
    given = (normalizers,) if one else tuple(normalizers)
    chosen = tuple(scope for scope in SCOPES if scope in given)
    if not given or len(chosen) < len(given):
        raise InputError(
            f'normalizers must be one or more of {SCOPES}, each at most once, got {given}'
        )
    return chosen


def switch_norm(
    input: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    normalizers: Iterable[str] = SCOPES,
    correction: int = 0,
    process_group: ProcessGroup | None = None,
    num_batches_tracked: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    r"""Applies Switchable Normalization, https://arxiv.org/abs/1806.10779, equations 2 to 5.

    Args:
        input: (N, C, \*S) with any number of spatial axes, floating point. Statistics are taken in
            float32 (float64 for float64), the output has the dtype and memory format of the input.
        mean_weight: (K,), the logits of the scopes' means in the order in, ln, bn: their softmax is
            the importance.
        var_weight: The same for the variances.
        running_mean: (C,), the batch scope's mean in evaluation; updated in place in training.
        running_var: (C,), its variance, unbiased as ``torch.nn.BatchNorm2d``'s.
        weight: (C,), scale after the normalization. Default: none.
        bias: (C,), shift after the normalization. Default: none.
        training: Take the batch scope from the input; False takes it from the running statistics.
        momentum: Share of the new batch in the running statistics. None: cumulative average, needs
            ``num_batches_tracked``.
        eps: Added to the mixed variance.
        normalizers: The K scopes, any of 'in', 'ln', 'bn'. With one position per channel
            (S all ones, or (N, C) input) an instance has no statistics of its own: the softmax
            is taken over the other scopes.
        correction: 0, the paper's biased instance variance; 1, the unbiased one of the authors'
            released code, which then feeds all scopes, and the running variance as it is.
        process_group: Pool the batch scope over these ranks in training, every position with the
            same weight. One collective forward, one backward; an empty batch takes part.
        num_batches_tracked: Scalar, counts the batches that updated the running statistics.
        name: Deprecated, goes with version 1.2: of the layer, for errors of ranks that meet in
            different ones. A layer has its ``sync_name`` for them.

    Returns:
        As ``input``.

    Raises:
        DtypeError: Tensors that are not floating point. An InputError and a TypeError.
        InputError: No tensors where tensors are needed, shapes that do not fit each other, tensors
            on several devices, sparse ones, unknown normalizers or correction, ``eps`` or
            ``momentum`` out of range, or no statistics to normalize with.
    """
    normalizers = canonical_normalizers(normalizers)
    check_eps(eps)
    check_momentum(momentum)
    check_correction(correction)
    check_group(process_group)
    if (running_mean is None) != (running_var is None):
        raise InputError('running_mean and running_var must be given together')
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, num_batches_tracked, momentum)
        _check_counter(num_batches_tracked, running_mean)
    elif not training and 'bn' in normalizers:
        raise InputError("'bn' with training=False needs running_mean and running_var")
    parameters = Parameters(mean_weight, var_weight, weight, bias)
    settings = Settings(normalizers, eps, correction)
    if name is not None:
        warnings.warn(
            'switch_norm(name=) is deprecated since version 1.1, and goes with version 1.2',
            DeprecationWarning,
            stacklevel=2,
        )
    return normalize(input, parameters, running, training, settings, process_group, name or '')


def _check_counter(batches: Any, running_mean: Any) -> None:
    if batches is None or not isinstance(running_mean, Tensor):
        return
    if not isinstance(batches, Tensor) or batches.numel() != 1:
        given = tuple(batches.shape) if isinstance(batches, Tensor) else batches
        raise InputError(f'num_batches_tracked must be a tensor of one number, got {given}')
    if batches.device != running_mean.device:
        raise InputError(
            f'num_batches_tracked must be on the device of running_mean, {running_mean.device}, '
            f'and is on {batches.device}'
        )


def check_eps(eps: float) -> None:
    """Checks what is added to the variance.

    Raises:
        InputError: It is not a positive number in float32, in which kernels add it: with 0,
            constant input becomes NaN.
    """
    check_number('eps', eps, _SMALLEST)


def check_momentum(momentum: float | None) -> None:
    """Checks the share of a new batch in running statistics.

    Raises:
        InputError: It is neither None nor a number from 0 to 1.
    """
    if momentum is not None:
        check_number('momentum', momentum, 0, 1)


def check_correction(correction: int) -> None:
    """Checks what is subtracted from the number of positions.

    Raises:
        InputError: It is neither 0 nor 1.
    """
    if not isinstance(correction, int) or correction not in (0, 1):
        raise InputError(f'correction must be 0 or 1, got {correction!r}')


@traceable
def normalize(
    x: Tensor,
    parameters: Parameters,
    running: Running | None,
    training: bool,
    settings: Settings,
    process_group: ProcessGroup | None = None,
    name: str = '',
) -> Tensor:
    """:func:`switch_norm` with settings that have been checked, for layers.

    Args:
        running: Moved in training, else taken for 'bn'. None: 'bn' is measured, nothing moved.
        name: Of the layer, for the error of ranks that meet in different layers.

    Raises:
        InputError: Tensors that do not go together, or no statistics to normalize with.
    """
    _check_tensors(x, parameters, running, settings.scopes)
    one_position = math.prod(x.shape[2:]) == 1
    if one_position:
        _check_one_position(x, settings.scopes, measured_here=training and process_group is None)
    if 'bn' not in settings.scopes:
        running = None
    if training and running is not None and running.momentum is None and running.batches is None:
        raise InputError('momentum=None (cumulative average) needs num_batches_tracked')
    look = look_at(x, process_group is not None)
    if look.ordinary:
        if process_group is not None:
            raise InputError(
                'torch.func, forward-mode differentiation and recorded graphs take layers with '
                'sync=False in training, and this one is synchronized over ranks'
            )
        moved = training and running is not None
        if moved and look.recorded and is_exporting():
            _warn_of_training()
        return _in_ordinary_operations(x, parameters, running, moved, settings, look.recorded)
    if one_position and settings.scopes[0] == 'in':
        mean_weight, var_weight, weight, bias = parameters
        mean_weight, var_weight = mask_instance(mean_weight), mask_instance(var_weight)
        parameters = Parameters(mean_weight, var_weight, weight, bias)
    if training and look.recomputing and running is not None:
        running = _unmoved(running, look)
    caller = None
    if process_group is not None and not look.compiling:
        caller = Caller(name, tuple(x.shape), x.shape[1], *settings)
    call = Call(running, training, settings, process_group, caller, look)
    return _in_passes(dense(x), parameters, call)


@constant_in_graphs  # a strict export passes warnings by where it traces
def _warn_of_training() -> None:
    warnings.warn(
        'torch.export records Switchable Normalization in training: moved to evaluation, the graph '
        'goes on with batch statistics, as no BatchNorm does; export model.eval() for evaluation',
        stacklevel=2,
    )


def _check_tensors(
    x: Tensor, parameters: Parameters, running: Running | None, scopes: tuple[str, ...]
) -> None:
    """Checks kind, device, dtype and shape of all tensors."""
    check_type('input', x, Tensor, 'a tensor')
    if not x.is_floating_point():
        raise DtypeError(f'input must be floating point, got {x.dtype}')
    if x.dim() < 2:
        raise InputError(f'input must be (N, C, *S), got {tuple(x.shape)}')
    if x.layout is not torch.strided:
        raise InputError(f'input must be dense (torch.strided), got {x.layout}')
    mean_weight, var_weight, weight, bias = parameters
    on_cpu, device, logits, channels = x.is_cpu, x.device, (len(scopes),), x.shape[1:2]
    mean, var = (None, None) if running is None else running[:2]
    for name, tensor, shape in (
        ('mean_weight', mean_weight, logits), ('var_weight', var_weight, logits),
        ('weight', weight, channels), ('bias', bias, channels),
        ('running_mean', mean, channels), ('running_var', var, channels),
    ):  # fmt: skip
        if tensor is None and name not in ('mean_weight', 'var_weight'):
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(f'{name} must be a tensor, got {type(tensor).__name__}')
        if not tensor.is_floating_point():
            raise DtypeError(f'{name} must be floating point, got {tensor.dtype}')
        # Kernels take addresses as they are. (is_cpu is asked in a third of device's time.)
        if not (tensor.is_cpu if on_cpu else tensor.device == device):
            raise InputError(
                f'input is on {device}, {name} on {tensor.device}: all must be on one device'
            )
        if tensor.shape == shape:
            continue
        if name in ('mean_weight', 'var_weight'):
            raise InputError(
                f'{name} must have one entry for each of {scopes}, got shape {tuple(tensor.shape)}'
            )
        raise InputError(
            f'{name} of shape {tuple(tensor.shape)} does not fit input of shape {tuple(x.shape)}: '
            f'it must be ({x.shape[1]},)'
        )


def _check_one_position(x: Tensor, scopes: tuple[str, ...], measured_here: bool) -> None:
    """Checks that there are statistics where each channel of an instance has one position.

    Args:
        measured_here: Whether the batch scope comes from this input alone.
    """
    if scopes == ('in',):
        raise InputError(
            f"normalizers=('in',) has no statistics for one position per channel, got input of "
            f"shape {tuple(map(int, x.shape))}; add 'ln' or 'bn'"
        )
    if measured_here and x.shape[0] == 1 and 'ln' not in scopes:
        raise InputError(
            f'the batch scope alone needs more than one value per channel to be measured, '
            f"got input of shape {tuple(x.shape)}; add 'ln' or a larger batch"
        )


def _unmoved(running: Running, look: Look) -> Running | None:
    """What the second pass of activation checkpointing moves in place of ``running``.

    The first pass has moved that. Selective checkpointing gives each operation of the second pass
    what the first pass saved, by the order of calls: so both passes need the same operations, and
    copies are moved.
    """
    if not look.operators or type(running.mean) is not Tensor:
        return None
    with torch._C._DisableTorchDispatch():
        batches = None if running.batches is None else running.batches.clone()
        return Running(running.mean.clone(), running.var.clone(), batches, running.momentum)


def _in_ordinary_operations(
    x: Tensor,
    parameters: Parameters,
    running: Running | None,
    moved: bool,
    settings: Settings,
    recorded: bool,
) -> Tensor:
    """In ordinary differentiable operations, as few as can be where they are recorded.

    Args:
        moved: Whether the running statistics are.
    """
    mean_weight, var_weight, weight, bias = parameters
    mean, var, batches, momentum = running or (None, None, None, None)
    if is_exporting_onnx() and not moved:
        # As numbers: the exporter's own folding of parameters loses one of two equal results, and
        # the file is then invalid.
        mean_weight, var_weight = (
            t.data if isinstance(t, nn.Parameter) else t for t in (mean_weight, var_weight)
        )
        weight, bias, mean, var = (t if t is None else t.data for t in (weight, bias, mean, var))
    return equations.switch_norm(
        x, mean_weight, var_weight, mean, var, weight, bias, moved, momentum, settings.eps,
        list(settings.scopes), settings.correction, batches, two_passes=moved or not recorded,
    )  # fmt: skip


def _in_passes(x: Tensor, parameters: Parameters, call: Call) -> Tensor:
    """In the hand-written passes, with a graph for backward where gradients are enabled."""
    if not torch.is_grad_enabled():
        return forward_pass(x, parameters, call, keep=False)[0]
    mean_weight = parameters.mean_weight
    compiling = call.look.compiling
    if call.process_group is not None and not mean_weight.requires_grad and not compiling:
        # All ranks run the backward collective, also one whose input happens to need no gradient.
        parameters = parameters._replace(mean_weight=mean_weight.detach().requires_grad_())
    if not compiling:
        return SwitchNormFunction.apply(x, *parameters, call)
    # A compiled graph takes no change of a buffer inside an autograd function.
    fixed = None if call.training else call.running
    output, batch, total = SwitchNormFunction.apply(x, *parameters, call._replace(running=fixed))
    if call.training and call.running is not None:
        aten.move(call.running, batch, total, call.settings)
    return output
