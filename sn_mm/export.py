"""What PyTorch does with a model, run it or record it, and SN for graphs that leave Python.

TorchScript, ``torch.export`` and ONNX know neither the layer's autograd function nor the kernels
that it calls. While one of them looks, the layer is :func:`evaluate` instead: the same equations
in ordinary operations, open to any batch and map size.
"""

# No postponed annotations: TorchScript reads these.
from typing import Optional

import torch
from torch import Tensor

__all__ = ['evaluate']


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
    maps = _as(x if x.dim() > 2 else x.unsqueeze(2), dtype)
    axes = [i for i in range(2, maps.dim())]  # noqa: C416 (TorchScript)
    per_channel = [1, -1] + [1] * len(axes)
    # A tensor, for map sizes that are known only when the graph runs.
    positions = torch.ones_like(maps[:1, :1]).sum()

    mean = maps.mean(axes, keepdim=True)
    var = (maps - mean).square().mean(axes, keepdim=True)
    if correction:
        var = var * (positions / (positions - correction).clamp(min=1))
    count = len(normalizers)
    logits = _as(torch.stack([mean_weight, var_weight]), dtype)
    if normalizers[0] == 'in':  # left out where maps have one position
        first = torch.arange(count, device=x.device) == 0
        logits = logits.masked_fill(first & (positions < 2), float('-inf'))
    shares = logits.softmax(1).flatten()

    mixed_mean, mixed_var = mean, var
    for i, scope in enumerate(normalizers):
        scope_mean, scope_var = mean, var
        if scope == 'bn' and running_mean is not None and running_var is not None:
            scope_mean = _as(running_mean, dtype).view(per_channel)
            scope_var = _as(running_var, dtype).view(per_channel)
        elif scope != 'in':
            axis = 1 if scope == 'ln' else 0
            scope_mean = mean.mean(axis, keepdim=True)
            spread = (mean - scope_mean).square().mean(axis, keepdim=True)
            scope_var = var.mean(axis, keepdim=True) + spread
        scope_mean, scope_var = shares[i] * scope_mean, shares[count + i] * scope_var
        mixed_mean = scope_mean if i == 0 else mixed_mean + scope_mean
        mixed_var = scope_var if i == 0 else mixed_var + scope_var

    scale = (mixed_var + eps).rsqrt()
    if weight is not None:
        scale = scale * _as(weight, dtype).view(per_channel)
    shift = -mixed_mean * scale
    if bias is not None:
        shift = shift + _as(bias, dtype).view(per_channel)
    y = _as(maps * scale + shift, x.dtype)
    return y if x.dim() > 2 else y.squeeze(2)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A cast only where there is something to cast, for short graphs."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
