"""Existing models: every BatchNorm, SyncBatchNorm, GroupNorm and InstanceNorm becomes SN."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

__all__ = ['convert_switch_norm']

logger = logging.getLogger(__name__)

_BY_DIMENSION = (
    ((nn.BatchNorm1d, nn.InstanceNorm1d), SwitchNorm1d),
    ((nn.BatchNorm2d, nn.InstanceNorm2d), SwitchNorm2d),
    ((nn.BatchNorm3d, nn.InstanceNorm3d), SwitchNorm3d),
    ((_BatchNorm, _InstanceNorm, nn.GroupNorm), SwitchNorm),  # any number of axes
)


def convert_switch_norm(
    model: nn.Module,
    report: Callable[[str], None] = logger.info,
    **layer_args: Any,
) -> nn.Module:
    """Replaces BatchNorm*, SyncBatchNorm, GroupNorm and InstanceNorm* by SN, in place.

    Keeps weight and bias (the same parameters), running statistics, eps, momentum, training mode,
    device, dtype and ``requires_grad``; a module used in several places stays one module. GroupNorm
    and SyncBatchNorm become :class:`SwitchNorm`, which takes any number of spatial axes. LayerNorm
    and SN stay.

    Args:
        model: Any torch model, a single norm included.
        report: Called with one line for each norm replaced, and one that counts them.
            Default: logs at level INFO.
        **layer_args: Arguments of the new layers, over what they take from the old ones.

    Returns:
        ``model``, or the new layer where ``model`` itself is a norm.

    Raises:
        ValueError: ``layer_args`` outside what :class:`SwitchNorm` allows, or a lazy norm that has
            not seen its first input. The model is then as it was.
    """
    norms = {name: m for name, m in model.named_modules() if _layer_for(m) is not None}
    fallback = next(model.parameters(), torch.empty(0))
    converted = {name: _convert(norm, fallback, layer_args) for name, norm in norms.items()}
    by_old = {norms[name]: new for name, new in converted.items()}
    for name, old in model.named_modules(remove_duplicate=False):
        if name and old in by_old:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, by_old[old])
    for name, old in norms.items():
        report(f'{name or "model"}: {type(old).__name__} -> {type(converted[name]).__name__}')
    report(f'{len(converted)} norms converted to Switchable Normalization')
    return by_old.get(model, model)


def _layer_for(module: nn.Module) -> Any:
    if isinstance(module, SwitchNorm):
        return None
    return next((new for old, new in _BY_DIMENSION if isinstance(module, old)), None)


def _convert(norm: Any, fallback: torch.Tensor, layer_args: dict[str, Any]) -> SwitchNorm:
    if isinstance(norm, nn.modules.lazy.LazyModuleMixin):
        raise ValueError(f'{type(norm).__name__} has no num_features before its first input')
    tensors = (norm.weight, getattr(norm, 'running_mean', None), fallback)
    origin = next(t for t in tensors if t is not None)
    args = {
        'eps': norm.eps,
        'momentum': getattr(norm, 'momentum', 0.1),
        'affine': norm.affine,
        'track_running_stats': not isinstance(norm, _BatchNorm) or norm.track_running_stats,
        'device': origin.device,
        'dtype': origin.dtype if origin.is_floating_point() else None,
    }
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    new: SwitchNorm = _layer_for(norm)(channels, **{**args, **layer_args})
    new.train(norm.training)
    if new.affine and norm.affine:
        new.weight, new.bias = norm.weight, norm.bias
        for logits in (new.mean_weight, new.var_weight):
            logits.requires_grad_(norm.weight.requires_grad)
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        if getattr(norm, name, None) is not None and getattr(new, name) is not None:
            setattr(new, name, getattr(norm, name))
    return new
