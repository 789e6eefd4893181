"""SN in evaluation as ordinary operations, for graphs that leave Python.

TorchScript, ``torch.export`` and ONNX know neither the layer's autograd function nor the kernels
that it calls. While one of them looks, the layer is this instead: the same equations, open to any
batch and map size.
"""

# No postponed annotations: TorchScript reads these.
from typing import Optional

import torch
from torch import Tensor

__all__ = ['evaluate', 'is_exporting']

# torch < 2.7 does not tell torch.export from torch.compile.
_is_exporting = getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)


@torch.jit.unused
def is_exporting() -> bool:
    """Whether ``torch.jit.trace``, ``torch.export`` or ``torch.onnx`` (by one of them) record."""
    return torch.jit.is_tracing() or _is_exporting()


def evaluate(
    x: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    eps: float,
    normalizers: list[str],
    correction: int,
) -> Tensor:
    r"""What :func:`sn_mm.functional.switch_norm` gives with ``training=False``, arguments as there.

    Args:
        x: (N, C, \*S).
        normalizers: In the order in, ln, bn.
        running_mean, running_var: None takes the batch scope from ``x``.

    Returns:
        As ``x``.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    maps = (x if x.dim() > 2 else x.unsqueeze(2)).to(dtype)
    axes = [i for i in range(2, maps.dim())]  # noqa: C416 (TorchScript)
    per_channel = [1, -1] + [1] * len(axes)
    # A tensor, for map sizes that are known only when the graph runs.
    positions = torch.ones_like(maps[:1, :1]).sum()

    mean = maps.mean(axes, keepdim=True)
    var = (maps - mean).square().mean(axes, keepdim=True)
    if correction:
        var = var * (positions / (positions - correction).clamp(min=1))
    p, q = mean_weight.to(dtype), var_weight.to(dtype)
    if normalizers[0] == 'in':  # left out where maps have one position
        alone = positions < 2
        p = torch.cat([p[:1].masked_fill(alone, float('-inf')), p[1:]])
        q = torch.cat([q[:1].masked_fill(alone, float('-inf')), q[1:]])
    p, q = p.softmax(0), q.softmax(0)

    mixed_mean, mixed_var = torch.zeros_like(mean), torch.zeros_like(var)
    for i, scope in enumerate(normalizers):
        scope_mean, scope_var = mean, var
        if scope == 'bn' and running_mean is not None and running_var is not None:
            scope_mean = running_mean.to(dtype).view(per_channel)
            scope_var = running_var.to(dtype).view(per_channel)
        elif scope != 'in':
            axis = 1 if scope == 'ln' else 0
            scope_mean = mean.mean(axis, keepdim=True)
            spread = (mean - scope_mean).square().mean(axis, keepdim=True)
            scope_var = var.mean(axis, keepdim=True) + spread
        mixed_mean = mixed_mean + p[i] * scope_mean
        mixed_var = mixed_var + q[i] * scope_var

    scale = (mixed_var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(dtype).view(per_channel)
    shift = -mixed_mean * scale
    if bias is not None:
        shift = shift + bias.to(dtype).view(per_channel)
    y = (maps * scale + shift).to(x.dtype)
    return y if x.dim() > 2 else y.squeeze(2)
