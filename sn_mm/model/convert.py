"""Existing models: every BatchNorm, SyncBatchNorm, GroupNorm and InstanceNorm becomes SN."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import InputError, check_type
from ..layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from ..norm_act import SwitchNormAct
from .names import name_layers
from .replace import replace_modules

__all__ = ['convert_switch_norm']

logger = logging.getLogger(__name__)

_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')
_FOLLOWERS = ('drop', 'act')
_TIMM: dict[str, type[SwitchNorm]] = {
    'BatchNormAct2d': SwitchNormAct,
    'SyncBatchNormAct': SwitchNormAct,
    'GroupNormAct': SwitchNormAct,
    'GroupNorm1Act': SwitchNormAct,
    'GroupNorm': SwitchNorm,
    'GroupNorm1': SwitchNorm,
}
"""The norms of timm with a forward of their own, by name in ``timm.layers``."""


def convert_switch_norm(
    model: nn.Module,
    *,
    report: Callable[[str], None] = logger.info,
    select: Callable[[str], bool] = lambda name: True,
    **layer_args: Any,
) -> nn.Module:
    """Replaces BatchNorm*, SyncBatchNorm, GroupNorm and InstanceNorm* by SN, in place.

    Keeps weight and bias (the same parameters), running statistics, eps, momentum, training mode,
    device, dtype, ``requires_grad``, hooks and SyncBatchNorm's process group; a module used in
    several places stays one module. GroupNorm and SyncBatchNorm (torch's and mmcv's) become
    :class:`SwitchNorm`, which takes any number of spatial axes. Norms without running statistics
    start them as a new layer does, except BatchNorm, which stays without.

    timm's norms that drop and activate as well (BatchNormAct2d, SyncBatchNormAct, GroupNormAct,
    GroupNorm1Act) become :class:`sn_mm.norm_act.SwitchNormAct` with their drop layer and
    activation.

    LayerNorm and SN stay as they are. So do other norms that do more than torch's (a forward of
    their own; further parameters, buffers or modules, as pruning adds): SN would drop that part.
    They are reported, with a warning.

    Convert before building the optimizer, which must see the new ``mean_weight`` and
    ``var_weight``.

    Args:
        model: Any torch model, a single norm included.
        report: Called with one line for each norm replaced or left, and one that counts them.
            Default: logs at level INFO.
        select: Called with the name of each such norm in ``model``. Where it returns False, the
            norm stays and is not reported. Default: all are replaced.
        **layer_args: Arguments of the new layers, over what they take from the old ones.
            ``init_importance='bn'`` keeps the function of a BatchNorm network. Without
            ``init_importance`` a BatchNorm with measured statistics becomes SN with
            ``{'bn': 0.9}``, or 'bn' where it is frozen, and other norms start with equal shares.

    Returns:
        ``model``, or the new layer where ``model`` itself is a norm.

    Raises:
        InputError: No model, no norm to convert, ``layer_args`` outside what :class:`SwitchNorm`
            allows, or a lazy norm that has not seen its first input. The model is then as it was.
        TypeError: ``layer_args`` that :class:`SwitchNorm` does not have. Likewise.
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    for name, function in (('report', report), ('select', select)):
        check_type(name, function, Callable, 'a function')  # type: ignore[arg-type]
    model, lines, left = replace_norms(model, select, layer_args)
    some = '; '.join(left[:3]) + ('; ...' if len(left) > 3 else '')
    if len(lines) == len(left):
        raise InputError(
            'no norm to convert: the model has '
            + (some or 'no BatchNorm, SyncBatchNorm, GroupNorm or InstanceNorm that is selected')
        )
    for line in lines:
        report(line)
    report(f'Norms converted to Switchable Normalization: {len(lines) - len(left)}')
    if left:
        warnings.warn(f'{len(left)} norms are not converted: {some}', stacklevel=2)
    return model


def replace_norms(
    model: nn.Module, select: Callable[[str], bool], layer_args: Mapping[str, Any]
) -> tuple[nn.Module, list[str], list[str]]:
    """Replaces norms as :func:`convert_switch_norm` does, without a word if there are none.

    Returns:
        ``model``, or the new layer where ``model`` itself is a norm; one line for each norm
        replaced or left; those of the norms left.
    """
    kinds = layers_by_kind()
    fallback = next(model.parameters(), torch.empty(0))
    converted: dict[nn.Module, SwitchNorm] = {}
    lines, left = [], []
    for name, module in model.named_modules():
        kind = next((k for k in kinds if isinstance(module, k)), None)
        if kind is None or isinstance(module, SwitchNorm) or not select(name):
            continue
        line = f'{name or "model"}: {type(module).__name__}'
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise InputError(f'{line} has no num_features before its first input')
        extras = extras_of(module)
        if extras:
            line = f'{line} left as it is, SN would drop its {extras}'
            left.append(line)
        else:
            new = converted[module] = _convert(module, kinds[kind], fallback, layer_args)
            line = f'{line} -> {type(new).__name__}'
        lines.append(line)
    return name_layers(replace_modules(model, converted)), lines, left


def layers_by_kind() -> dict[type[nn.Module], type[SwitchNorm]]:
    """Norm classes, special ones before their bases, and the layers that take their place."""
    timm = sys.modules.get('timm.layers')  # without it no model has its norms; likewise mmcv.ops
    kinds: dict[type[nn.Module], type[SwitchNorm]] = {
        **{getattr(timm, name): layer for name, layer in _TIMM.items() if hasattr(timm, name)},
        nn.BatchNorm1d: SwitchNorm1d,
        nn.BatchNorm2d: SwitchNorm2d,
        nn.BatchNorm3d: SwitchNorm3d,
        nn.InstanceNorm1d: SwitchNorm1d,
        nn.InstanceNorm2d: SwitchNorm2d,
        nn.InstanceNorm3d: SwitchNorm3d,
        nn.SyncBatchNorm: SwitchNorm,
        _BatchNorm: SwitchNorm,
        _InstanceNorm: SwitchNorm,
        nn.GroupNorm: SwitchNorm,
    }
    mmcv_sync_bn = getattr(sys.modules.get('mmcv.ops'), 'SyncBatchNorm', None)
    if mmcv_sync_bn is not None:
        kinds[mmcv_sync_bn] = SwitchNorm
    return kinds


def extras_of(norm: nn.Module) -> str:
    """The parts of a norm beyond its library class, which SN would drop; '' if it has none."""
    kind, layer = next(item for item in layers_by_kind().items() if isinstance(norm, item[0]))
    if getattr(norm.forward, '__func__', None) is not kind.forward:
        return 'own forward'
    members = {*norm._parameters, *norm._buffers, *norm._modules}
    kept = {'weight', 'bias', *_STATISTICS, *(_FOLLOWERS if layer is SwitchNormAct else ())}
    return ', '.join(sorted(members - kept))


def _has_measured(norm: _BatchNorm) -> bool:
    """Whether running statistics are not those of a new layer; old files have no counter."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or mean.is_meta:
        return False
    return bool(mean.any()) or bool((var != 1).any())


def _convert(
    norm: Any, layer: type[SwitchNorm], fallback: torch.Tensor, layer_args: Mapping[str, Any]
) -> SwitchNorm:
    statistics = {name: getattr(norm, name, None) for name in _STATISTICS}
    origin = next(t for t in (norm.weight, statistics['running_mean'], fallback) if t is not None)
    args = {
        'eps': norm.eps,
        'momentum': getattr(norm, 'momentum', 0.1),
        'affine': norm.affine,
        'bias': norm.bias is not None or not norm.affine,
        'track_running_stats': isinstance(norm, (_InstanceNorm, nn.GroupNorm))
        or statistics['running_mean'] is not None,
        'device': origin.device,
        'dtype': origin.dtype if origin.is_floating_point() else None,
    }
    if layer_args.get('sync', True) is True:
        group = getattr(norm, 'process_group', getattr(norm, 'group', None))
        if group is not None and group is not torch.distributed.group.WORLD:
            args['process_group'] = group
    if layer is SwitchNormAct:
        args.update({name: getattr(norm, name, None) for name in _FOLLOWERS})
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    new = layer(channels, **{**args, **layer_args})
    new.train(norm.training)
    if new.affine and norm.affine:
        new.weight = norm.weight
        if norm.bias is not None and new.bias is not None:
            new.bias = norm.bias
        for logits in (new.mean_weight, new.var_weight):
            logits.requires_grad_(norm.weight.requires_grad)
    for name, value in statistics.items():
        if value is not None and getattr(new, name) is not None:
            setattr(new, name, value)
    if isinstance(norm, _BatchNorm) and _has_measured(norm):
        new.take_over_batch_norm()
    stopped = statistics['running_mean'] is not None and not norm.track_running_stats
    if stopped and 'track_running_stats' not in layer_args:
        new.track_running_stats = False
    return new
