"""Both passes as operators of PyTorch's own, which ``torch.compile`` takes into its graph whole.

A compiled model runs the same kernels and the same collectives as an eager one and gives the same
numbers; what surrounds the layer is compiled. Needs torch 2.4; on older versions ``torch.compile``
breaks its graph at the layer.
"""

# No postponed annotations: the operators' schemas are read from these.
from typing import Any, Optional

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from . import ops
from .distributed import resolve_group
from .passes import Saved, as_parameter, backward_pass, forward_pass, used_normalizers

__all__ = ['apply', 'constant_group']


# Process groups exist before a model is compiled. Dynamo calls this while it traces.
constant_group = torch.compiler.assume_constant_result(resolve_group)


def _group(name: str) -> Optional[ProcessGroup]:
    resolve: Any = torch.distributed.distributed_c10d._resolve_process_group
    return resolve(name) if name else None


def _forward(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    eps: float,
    normalizers: str,
    correction: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    y, saved = forward_pass(
        ops.dense(x), mean_weight, var_weight, weight, bias, running_mean, running_var, eps,
        normalizers.split(), correction, _group(group),
    )  # fmt: skip
    none = saved.rstd.new_empty(0)
    layer = none if saved.layer is None else saved.layer
    batch = none.clone() if saved.batch is None else saved.batch
    total = saved.total if isinstance(saved.total, Tensor) else none.clone()
    return y, saved.weights, saved.instance, saved.rstd, layer, batch, total


def _forward_shapes(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    eps: float,
    normalizers: str,
    correction: int,
    group: str,
) -> tuple[Tensor, ...]:
    n, c = x.shape[:2]
    used = used_normalizers(x, normalizers.split())
    array = x.new_empty(n, c, dtype=ops.stats_dtype(x.dtype))
    return (
        torch.empty_like(ops.dense(x)),
        array.new_empty(2, len(used)),
        array.new_empty(2, n, c),
        array,
        array.new_empty((2, n, 1) if 'ln' in used else 0),
        array.new_empty((2, 1, c) if 'bn' in used else 0),
        array.new_empty(() if 'bn' in used and group and running_mean is None else 0),
    )


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Optional[Tensor],
    weights: Tensor,
    instance: Tensor,
    rstd: Tensor,
    layer: Tensor,
    batch: Tensor,
    total: Tensor,
    measured: bool,
    normalizers: str,
    correction: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = ops.dense(x)
    count = total if total.numel() else x.numel() // x.shape[1] if measured else None
    saved = Saved(weights, instance, rstd, layer, batch, count)
    grads = backward_pass(
        dy, x, weight, saved, True, normalizers.split(), correction, _group(group)
    )
    assert grads.x is not None
    return grads.x, grads.importance, grads.weight, grads.bias


def _backward_shapes(
    dy: Tensor,
    x: Tensor,
    weight: Optional[Tensor],
    weights: Tensor,
    instance: Tensor,
    rstd: Tensor,
    layer: Tensor,
    batch: Tensor,
    total: Tensor,
    measured: bool,
    normalizers: str,
    correction: int,
    group: str,
) -> tuple[Tensor, ...]:
    channels = rstd.new_empty(x.shape[1])
    return torch.empty_like(ops.dense(x)), torch.empty_like(weights), channels, channels.clone()


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, mean_weight, var_weight, weight, bias, running_mean, _, _, *ctx.config = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.measured = running_mean is None
    ctx.parameters = [
        None if w is None else (w.shape[0], w.dtype)
        for w in (mean_weight, var_weight, weight, bias)
    ]


def _differentiate(ctx: Any, dy: Tensor, *unused: Any) -> tuple[Optional[Tensor], ...]:
    dx, importance, weight, bias = torch.ops.sn_mm.backward(
        dy, *ctx.saved_tensors, ctx.measured, *ctx.config
    )
    grads = [*importance.unbind(), weight, bias]
    return dx, *map(as_parameter, grads, ctx.parameters), *(None,) * 6


if hasattr(torch.library, 'custom_op'):
    _operator = torch.library.custom_op('sn_mm::forward', _forward, mutates_args=())
    _operator.register_fake(_forward_shapes)
    _operator.register_autograd(_differentiate, setup_context=_setup_context)
    torch.library.custom_op('sn_mm::backward', _backward, mutates_args=()).register_fake(
        _backward_shapes
    )


def apply(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    eps: float,
    normalizers: tuple[str, ...],
    correction: int,
    process_group: Optional[ProcessGroup],
) -> tuple[Tensor, Optional[Tensor], Any]:
    """What the autograd function of :mod:`sn_mm.functional` gives, as one node of a graph."""
    group = '' if process_group is None else process_group.group_name
    y, _, _, _, _, batch, total = torch.ops.sn_mm.forward(
        x, mean_weight, var_weight, weight, bias, running_mean, running_var, eps,
        ' '.join(normalizers), correction, group,
    )  # fmt: skip
    if running_mean is not None or 'bn' not in normalizers:
        return y, None, None
    return y, batch, total if group else x.numel() // x.shape[1]
