"""Switchable Normalization as a function, with its hand-written backward."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from . import ops
from .statistics import (
    SCOPES,
    BatchMoments,
    Moments,
    batch_moments,
    layer_moments,
    mix,
    mix_backward,
)

__all__ = ['canonical_normalizers', 'switch_norm']


def canonical_normalizers(normalizers: Iterable[str]) -> tuple[str, ...]:
    """Checks ``normalizers`` and returns them in the order in, ln, bn.

    Raises:
        ValueError: Unknown, repeated or no normalizers.
    """
    given = tuple([normalizers] if isinstance(normalizers, str) else normalizers)
    if not given or len(set(given)) < len(given) or not set(given) <= set(SCOPES):
        raise ValueError(
            f'normalizers must be one or more of {SCOPES}, each at most once, got {given}'
        )
    return tuple(scope for scope in SCOPES if scope in given)


class _SwitchNorm(torch.autograd.Function):
    """Forward and backward in two sweeps each; keeps the input and O(NC) numbers.

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
        running: Moments | None,
        eps: float,
        normalizers: tuple[str, ...],
        correction: int,
        process_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, int | Tensor | None]:
        x = ops.dense(x)
        dtype = ops.stats_dtype(x.dtype)
        positions = math.prod(x.shape[2:])
        if positions == 1:
            normalizers = tuple(scope for scope in normalizers if scope != 'in')
        p, q = (w[-len(normalizers) :].to(dtype).softmax(0) for w in (mean_weight, var_weight))

        if x.numel():
            mean, var, spare = ops.backend.moments(x, dtype)
        else:
            mean, var = torch.zeros(2, *x.shape[:2], dtype=dtype, device=x.device)
        unbiased = positions / (positions - correction) if positions > 1 else 1.0
        instance = Moments(mean, var if unbiased == 1 else var * unbiased)

        scopes: dict[str, Any] = {'in': instance}
        batch = None
        if 'ln' in normalizers:
            scopes['ln'] = layer_moments(instance)
        if 'bn' in normalizers and running is not None:
            # Copies: training, or DDP's broadcast, may move the buffers before the backward pass.
            scopes['bn'] = Moments(*(t.to(dtype, copy=True)[None] for t in running))
        elif 'bn' in normalizers:
            scopes['bn'] = batch = batch_moments(instance, positions, process_group)

        mu = mix(p, [scopes[k].mean for k in normalizers]).expand_as(instance.mean)
        rstd = mix(q, [scopes[k].var for k in normalizers]).add_(eps).rsqrt_().expand_as(mu)
        scale = rstd if weight is None else rstd * weight.to(dtype)
        offset = mu.new_zeros(()) if bias is None else bias.to(dtype)
        shift = torch.addcmul(offset, mu, scale, value=-1)
        y = ops.backend.apply(x, scale, shift, spare) if x.numel() else torch.empty_like(x)

        pooled = [t for k in ('ln', 'bn') if k in normalizers for t in scopes[k][:2]]
        total = None if batch is None else batch.total
        ctx.save_for_backward(
            x, p, q, *instance, mu, rstd, scale,
            total if isinstance(total, Tensor) else None, *pooled,
        )  # fmt: skip
        counted = None if isinstance(total, Tensor) else total  # an output here would be a cycle
        ctx.config = normalizers, positions, unbiased, counted, process_group
        ctx.parameters = [(w.shape, w.dtype) for w in (mean_weight, var_weight)] + [
            None if w is None else w.dtype for w in (weight, bias)
        ]
        if batch is None:
            return y, None, None, None
        ctx.mark_non_differentiable(*(t for t in batch if isinstance(t, Tensor)))
        return y, *batch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        x, p, q, m, v, mu, rstd, scale, total_tensor, *pooled = ctx.saved_tensors
        normalizers, positions, unbiased, total, process_group = ctx.config
        instance = Moments(m, v)
        scopes: dict[str, Any] = {'in': instance}
        for k in ('ln', 'bn'):
            if k in normalizers:
                scopes[k] = Moments(pooled.pop(0), pooled.pop(0))

        if x.numel():
            dy = ops.dense(dy, like=x)
            sum_dy, sum_dy_xc = ops.backend.grad_sums(dy, x, m)
        else:
            sum_dy, sum_dy_xc = torch.zeros_like(m), torch.zeros_like(m)
        sum_dy_xhat = rstd * torch.addcmul(sum_dy_xc, m - mu, sum_dy)
        d_mu = (scale * sum_dy).neg_()
        d_var = (scale * rstd).mul_(sum_dy_xhat).mul_(-0.5)
        total = total if total_tensor is None else total_tensor
        grads = mix_backward(
            d_mu, d_var, p, q, normalizers, scopes, positions, total, process_group
        )

        dx = d_mean_weight = d_var_weight = d_weight = d_bias = None
        mean_logits, var_logits, weight_dtype, bias_dtype = ctx.parameters
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            if x.numel():
                b, c = grads.var * (2 * unbiased / positions), grads.mean / positions
                dx = ops.backend.grad_input(dy, x, m, scale, b, c)
        if ctx.needs_input_grad[1]:
            d_mean_weight = _unused_first(grads.mean_weight, *mean_logits)
        if ctx.needs_input_grad[2]:
            d_var_weight = _unused_first(grads.var_weight, *var_logits)
        if ctx.needs_input_grad[3]:
            d_weight = sum_dy_xhat.sum(0).to(weight_dtype)
        if ctx.needs_input_grad[4]:
            d_bias = sum_dy.sum(0).to(bias_dtype)
        return dx, d_mean_weight, d_var_weight, d_weight, d_bias, None, None, None, None, None


def _unused_first(grad: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of all logits: 0 for 'in', the first, where it was left out."""
    return torch.nn.functional.pad(grad.to(dtype), (shape[0] - grad.shape[0], 0))


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
    per_channel = {
        'weight': weight,
        'bias': bias,
        'running_mean': running_mean,
        'running_var': running_var,
    }
    for name, tensor in per_channel.items():
        if tensor is not None and tensor.shape != input.shape[1:2]:
            raise ValueError(
                f'{name} of shape {tuple(tensor.shape)} does not fit input of shape '
                f'{tuple(input.shape)}: it must be ({input.shape[1]},)'
            )
    for name, tensor in {'mean_weight': mean_weight, 'var_weight': var_weight}.items():
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
    if math.prod(input.shape[2:]) == 1:
        if normalizers == ('in',):
            raise ValueError(
                f"normalizers=('in',) has no statistics for one position per map, got input of "
                f"shape {tuple(input.shape)}; add 'ln' or 'bn'"
            )
        alone = input.shape[0] == 1 and process_group is None
        if alone and training and 'ln' not in normalizers:
            raise ValueError(
                f'the batch scope alone needs more than one value per channel in training, '
                f"got input of shape {tuple(input.shape)}; add 'ln' or a larger batch"
            )

    if process_group is not None and not mean_weight.requires_grad:
        # All ranks run the backward collective, also one whose input happens to need no gradient.
        mean_weight = mean_weight.detach().requires_grad_()
    running = None
    if not training and running_mean is not None and running_var is not None:
        running = Moments(running_mean, running_var)
    output, mean, var, total = _SwitchNorm.apply(
        input, mean_weight, var_weight, weight, bias, running, eps, normalizers, correction,
        process_group,
    )  # fmt: skip
    # A forward pass inside a backward pass is activation checkpointing's second one: it must not
    # count the same batch twice.
    recomputing = torch._C._current_graph_task_id() != -1
    measured = total is not None and not recomputing
    if measured and running_mean is not None and running_var is not None:
        batch = BatchMoments(mean, var, total)
        _update_running(running_mean, running_var, batch, momentum, num_batches_tracked, correction)
    return output


@torch.no_grad()
def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    batch: BatchMoments,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    correction: int,
) -> None:
    """Moves the running statistics towards the batch's; without positions all stay as they are."""
    total = torch.as_tensor(batch.total, dtype=batch.var.dtype, device=batch.var.device)
    seen = total > 0
    if num_batches_tracked is not None:
        num_batches_tracked += seen
    rate = seen.to(running_mean.dtype)
    if momentum is not None:
        rate = rate * momentum
    elif num_batches_tracked is not None:
        rate = rate / num_batches_tracked.clamp(min=1)
    var = batch.var if correction else batch.var * (total / (total - 1).clamp(min=1))
    running_mean.lerp_(batch.mean[0].to(running_mean.dtype), rate)
    running_var.lerp_(var[0].to(running_var.dtype), rate)
