"""Switchable Normalization as a function, with its hand-written backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from . import equations
from ._compat import is_compiling, is_exporting, is_transformed, is_watched, traceable
from .autograd import SwitchNormFunction, forward_pass
from .distributed import Caller, check_group
from .equations import SCOPES, Parameters, Running, Settings
from .errors import InputError, check_number, check_type
from .ops import aten, dense

__all__ = ['canonical_normalizers', 'switch_norm']


_CANONICAL = {
    subset for k in range(1, len(SCOPES) + 1) for subset in itertools.combinations(SCOPES, k)
}


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


def check_instances(input: Tensor, normalizers: tuple[str, ...]) -> None:
    """Checks that the input has statistics.

    Raises:
        InputError: 'in' alone, and one position per channel.
    """
    if normalizers == ('in',) and math.prod(input.shape[2:]) == 1:
        raise InputError(
            f"normalizers=('in',) has no statistics for one position per channel, got input of "
            f"shape {tuple(map(int, input.shape))}; add 'ln' or 'bn'"
        )


@traceable
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
    name: str = '',
) -> Tensor:
    r"""Applies Switchable Normalization, https://arxiv.org/abs/1806.10779, equations 2 to 5.

    Args:
        input: (N, C, \*S) with any number of spatial axes, floating point. Statistics are taken in
            float32 (float64 for float64), the output has the dtype and memory format of the input.
        mean_weight: Importance of each scope's mean before the softmax, (K,) in the order in, ln,
            bn.
        var_weight: The same for the variances.
        running_mean: (C,), the batch scope's mean in evaluation; updated in place in training.
        running_var: (C,), its variance, unbiased as ``torch.nn.BatchNorm2d``'s.
        weight: (C,), scale after the normalisation. Default: none.
        bias: (C,), shift after the normalisation. Default: none.
        training: Take the batch scope from the input; False takes it from the running statistics.
        momentum: Share of the new batch in the running statistics. None: cumulative average, needs
            ``num_batches_tracked``.
        eps: Added to the mixed variance.
        normalizers: The K scopes, any of 'in', 'ln', 'bn'. With one position per channel
            (S all ones, or (N, C) input) an instance has no statistics of its own: 'in' is left
            out and the softmax taken over the rest.
        correction: 0, the paper's biased instance variance; 1, the unbiased one of the authors'
            released code, which then feeds all scopes, and the running variance as it is.
        process_group: Pool the batch scope over these ranks in training, every position with the
            same weight. One collective forward, one backward; an empty batch takes part.
        num_batches_tracked: Scalar, counts the batches that updated the running statistics.
        name: Of the layer, for the error of ranks that meet in different layers.

    Returns:
        As ``input``.

    Raises:
        TypeError: ``input`` is not floating point.
        InputError: No tensors where tensors are needed, shapes that do not fit each other, tensors
            on several devices, sparse ones, parameters or statistics that are not floating point,
            unknown normalizers or correction, ``eps`` or ``momentum`` out of range, or no
            statistics to normalise with.
    """
    normalizers = canonical_normalizers(normalizers)
    check_type('input', input, Tensor, 'a tensor')
    if not input.is_floating_point():
        raise TypeError(f'input must be floating point, got {input.dtype}')
    if input.dim() < 2:
        raise InputError(f'input must be (N, C, *S), got {tuple(input.shape)}')
    if input.layout is not torch.strided:
        raise InputError(f'input must be dense (torch.strided), got {input.layout}')
    if not isinstance(correction, int) or correction not in (0, 1):
        raise InputError(f'correction must be 0 or 1, got {correction!r}')
    check_number('eps', eps, 0)
    if momentum is not None:
        check_number('momentum', momentum, 0, 1)
    check_group(process_group)
    per_channel = (
        ('weight', weight), ('bias', bias),
        ('running_mean', running_mean), ('running_var', running_var),
    )  # fmt: skip
    logits = ('mean_weight', mean_weight), ('var_weight', var_weight)
    device, channels, scopes = input.device, input.shape[1:2], (len(normalizers),)
    for argument, tensor in (*logits, *per_channel):
        if tensor is None and argument not in ('mean_weight', 'var_weight'):
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(f'{argument} must be a tensor, got {type(tensor).__name__}')
        if not tensor.is_floating_point():
            raise InputError(f'{argument} must be floating point, got {tensor.dtype}')
        if tensor.device != device:  # kernels take addresses as they are
            raise InputError(
                f'input is on {device}, {argument} on {tensor.device}: all must be on one device'
            )
    for argument, tensor in per_channel:
        if tensor is not None and tensor.shape != channels:
            raise InputError(
                f'{argument} of shape {tuple(tensor.shape)} does not fit input of shape '
                f'{tuple(input.shape)}: it must be ({input.shape[1]},)'
            )
    for argument, tensor in logits:
        if tensor.shape != scopes:
            raise InputError(
                f'{argument} must have one entry for each of {normalizers}, '
                f'got shape {tuple(tensor.shape)}'
            )
    if (running_mean is None) != (running_var is None):
        raise InputError('running_mean and running_var must be given together')
    if not training and 'bn' in normalizers and running_mean is None:
        raise InputError("'bn' with training=False needs running_mean and running_var")
    if momentum is None and num_batches_tracked is None and running_mean is not None and training:
        raise InputError('momentum=None (cumulative average) needs num_batches_tracked')
    check_instances(input, normalizers)
    one_position = math.prod(input.shape[2:]) == 1
    if one_position:
        alone = input.shape[0] == 1 and process_group is None
        if alone and training and 'ln' not in normalizers:
            raise InputError(
                f'the batch scope alone needs more than one value per channel to be measured, '
                f"got input of shape {tuple(input.shape)}; add 'ln' or a larger batch"
            )

    if 'bn' not in normalizers:
        running_mean = running_var = None
    compiling = is_compiling()
    if is_exporting(input, process_group is not None) or (not compiling and is_transformed()):
        if process_group is not None:
            raise InputError(
                'torch.func, forward-mode differentiation and recorded graphs take layers with '
                'sync=False in training, and this one is synchronised over ranks'
            )
        return equations.switch_norm(
            input, mean_weight, var_weight, running_mean, running_var, weight, bias, training,
            momentum, eps, list(normalizers), correction, num_batches_tracked,
        )  # fmt: skip

    # A forward pass inside a backward pass is activation checkpointing's second one: it must not
    # count the same batch twice. (In a compiled region there is no such pass.)
    recomputing = not compiling and torch._C._current_graph_task_id() != -1
    running = None
    if running_mean is not None and running_var is not None:
        if not (training and recomputing):
            running = Running(running_mean, running_var, num_batches_tracked, momentum)
        elif is_watched() and type(running_mean) is Tensor:
            # Selective checkpointing tells operations by their order: both passes have the same.
            with torch._C._DisableTorchDispatch():
                batches = None if num_batches_tracked is None else num_batches_tracked.clone()
                running = Running(running_mean.clone(), running_var.clone(), batches, momentum)
    settings = Settings(normalizers, eps, correction)
    caller = None
    if process_group is not None and not compiling:
        caller = Caller(name, input.shape[1], normalizers, eps, correction)
    if one_position and normalizers[0] == 'in':
        mean_weight = equations.mask_instance(mean_weight)
        var_weight = equations.mask_instance(var_weight)
    input = dense(input)
    if not torch.is_grad_enabled():
        parameters = Parameters(mean_weight, var_weight, weight, bias)
        output, *_ = forward_pass(
            input, parameters, running, training, settings, process_group, caller
        )
        return output
    if process_group is not None and not mean_weight.requires_grad and not compiling:
        # All ranks run the backward collective, also one whose input happens to need no gradient.
        mean_weight = mean_weight.detach().requires_grad_()
    tensors = input, mean_weight, var_weight, weight, bias
    if not compiling:
        return SwitchNormFunction.apply(
            *tensors, running, training, settings, process_group, caller, False
        )
    # A compiled graph takes no change of a buffer inside an autograd function.
    fixed = None if training else running
    output, batch, total = SwitchNormFunction.apply(
        *tensors, fixed, training, settings, process_group, caller, True
    )
    if training and running is not None:
        aten.move(running, batch, total, settings)
    return output
