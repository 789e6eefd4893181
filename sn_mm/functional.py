"""Switchable Normalization as a function, with its hand-written backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from . import ops
from .equations import SCOPES
from .passes import Saved, backward_pass, forward_pass
from .tracing import is_compiling

__all__ = ['canonical_normalizers', 'switch_norm']


_CANONICAL = {
    subset for k in range(1, len(SCOPES) + 1) for subset in itertools.combinations(SCOPES, k)
}


def canonical_normalizers(normalizers: Iterable[str]) -> tuple[str, ...]:
    """Checks ``normalizers`` and returns them in the order in, ln, bn.

    Raises:
        ValueError: Unknown, repeated or no normalizers.
    """
    if isinstance(normalizers, tuple) and normalizers in _CANONICAL:
        return normalizers
    given = tuple([normalizers] if isinstance(normalizers, str) else normalizers)
    if not given or len(set(given)) < len(given) or not set(given) <= set(SCOPES):
        raise ValueError(
            f'normalizers must be one or more of {SCOPES}, each at most once, got {given}'
        )
    return tuple(scope for scope in SCOPES if scope in given)


def check_instances(input: Tensor, normalizers: tuple[str, ...]) -> None:
    """Checks that there is something to normalise with.

    Raises:
        ValueError: 'in' alone, and one position per map.
    """
    if normalizers == ('in',) and math.prod(input.shape[2:]) == 1:
        raise ValueError(
            f"normalizers=('in',) has no statistics for one position per map, got input of "
            f"shape {tuple(map(int, input.shape))}; add 'ln' or 'bn'"
        )


class _SwitchNorm(torch.autograd.Function):
    """Both passes; keeps the input and O(NC) numbers.

    Returns y, and the moments and the total of the batch scope where it was measured, else None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean_weight: Tensor,
        var_weight: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        normalizers: tuple[str, ...],
        correction: int,
        process_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor | None, int | Tensor | None]:
        x = ops.dense(x)
        y, saved = forward_pass(
            x, mean_weight, var_weight, weight, bias, running_mean, running_var, eps, normalizers,
            correction, process_group,
        )  # fmt: skip
        total = saved.total
        counted = isinstance(total, Tensor)  # then an output, which kept in ctx would be a cycle
        ctx.save_for_backward(x, weight, *saved[:-1], total if counted else None)
        ctx.config = None if counted else total, normalizers, correction, process_group
        parameters = zip((mean_weight, var_weight, weight, bias), ctx.needs_input_grad[1:])
        ctx.parameters = [
            (w.shape[0], w.dtype) if w is not None and need else None for w, need in parameters
        ]
        if total is None:
            return y, None, None
        ctx.mark_non_differentiable(*(t for t in (saved.batch, total) if isinstance(t, Tensor)))
        return y, saved.batch, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        total, *config = ctx.config  # normalizers, correction, process_group
        if total is not None:
            saved[-1] = total
        dx, *grads = backward_pass(dy, x, weight, Saved(*saved), ctx.needs_input_grad[0], *config)
        return dx, *map(_as_parameter, grads, ctx.parameters), *(None,) * 6


def _as_parameter(grad: Tensor, parameter: tuple[int, torch.dtype] | None) -> Tensor | None:
    """A gradient in the parameter's dtype; for K logits 0 in place of 'in' where it was left out.

    Args:
        grad: (C,), or (K',) of the K logits.
        parameter: Length and dtype of the parameter, None if there is none.
    """
    if parameter is None:
        return None
    length, dtype = parameter
    missing = length - grad.shape[0]
    return (torch.nn.functional.pad(grad, (missing, 0)) if missing else grad).to(dtype)


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
        normalizers: The K scopes, any of 'in', 'ln', 'bn'. With one position per map (S all ones,
            or (N, C) input) an instance has no statistics of its own: 'in' is left out and the
            softmax taken over what remains.
        correction: 0, the paper's biased instance variance; 1, the unbiased one of the authors'
            released code, which then feeds all scopes, and the running variance as it is.
        process_group: Pool the batch scope over these ranks in training, every position with the
            same weight. One collective forward, one backward; an empty batch takes part.
        num_batches_tracked: Scalar, counts the batches that updated the running statistics.

    Returns:
        As ``input``.

    Raises:
        TypeError: ``input`` is not floating point.
        ValueError: Shapes that do not fit each other, unknown normalizers or correction, or no
            statistics to normalise with.
    """
    normalizers = canonical_normalizers(normalizers)
    if not input.is_floating_point():
        raise TypeError(f'input must be floating point, got {input.dtype}')
    if input.dim() < 2:
        raise ValueError(f'input must be (N, C, *S), got {tuple(input.shape)}')
    if correction not in (0, 1):
        raise ValueError(f'correction must be 0 or 1, got {correction!r}')
    named = ('weight', weight), ('bias', bias)
    for name, tensor in (*named, ('running_mean', running_mean), ('running_var', running_var)):
        if tensor is not None and tensor.shape != input.shape[1:2]:
            raise ValueError(
                f'{name} of shape {tuple(tensor.shape)} does not fit input of shape '
                f'{tuple(input.shape)}: it must be ({input.shape[1]},)'
            )
    for name, tensor in (('mean_weight', mean_weight), ('var_weight', var_weight)):
        if tensor.shape != (len(normalizers),):
            raise ValueError(
                f'{name} must have one entry for each of {normalizers}, '
                f'got shape {tuple(tensor.shape)}'
            )
    if (running_mean is None) != (running_var is None):
        raise ValueError('running_mean and running_var must be given together')
    if not training and 'bn' in normalizers and running_mean is None:
        raise ValueError("'bn' with training=False needs running_mean and running_var")
    if momentum is None and num_batches_tracked is None and running_mean is not None and training:
        raise ValueError('momentum=None (cumulative average) needs num_batches_tracked')
    check_instances(input, normalizers)
    if math.prod(input.shape[2:]) == 1:
        alone = input.shape[0] == 1 and process_group is None
        if alone and training and 'ln' not in normalizers:
            raise ValueError(
                f'the batch scope alone needs more than one value per channel to be measured, '
                f"got input of shape {tuple(input.shape)}; add 'ln' or a larger batch"
            )

    compiling = is_compiling()
    if process_group is not None and not mean_weight.requires_grad and not compiling:
        # All ranks run the backward collective, also one whose input happens to need no gradient.
        mean_weight = mean_weight.detach().requires_grad_()
    measure = training or running_mean is None
    arguments = (
        mean_weight, var_weight, weight, bias, None if measure else running_mean,
        None if measure else running_var, eps, normalizers, correction, process_group,
    )  # fmt: skip
    if torch.is_grad_enabled():
        output, batch, total = _SwitchNorm.apply(input, *arguments)
    else:
        output, saved = forward_pass(ops.dense(input), *arguments)
        batch, total = saved.batch if measure else None, saved.total
    # A forward pass inside a backward pass is activation checkpointing's second one: it must not
    # count the same batch twice. (torch.compile has its own way there, without such a pass.)
    recomputing = not compiling and torch._C._current_graph_task_id() != -1
    measured = batch is not None and not recomputing
    if measured and running_mean is not None and running_var is not None:
        _update_running(
            running_mean, running_var, batch[0, 0], batch[1, 0], total, momentum,
            num_batches_tracked, correction,
        )  # fmt: skip
    return output


def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    total: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    correction: int,
) -> None:
    """Moves the running statistics towards the batch's; without positions all stay as they are."""
    dtype = running_mean.dtype
    seen: int | Tensor = total > 0 if isinstance(total, Tensor) else 1
    if isinstance(total, Tensor):
        others: int | Tensor = (total - 1).clamp(min=1)
    elif total:
        others = max(total - 1, 1)
    else:
        return
    if num_batches_tracked is not None:
        num_batches_tracked += seen
    rate: float | Tensor
    if momentum is not None:
        rate = momentum
    else:
        assert num_batches_tracked is not None
        rate = num_batches_tracked.clamp(min=1).to(dtype).reciprocal()
    if isinstance(seen, Tensor):
        rate = seen.to(dtype) * rate
    if not correction:
        var = var * (total / others)
    running_mean.lerp_(mean.to(dtype), rate)
    running_var.lerp_(var.to(dtype), rate)
