"""Existing models: every BatchNorm, SyncBatchNorm, GroupNorm and InstanceNorm becomes SN."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import InputError, check_bool, check_type
from ..frozen import FrozenSwitchNorm2d
from ..layer import SwitchNorm
from ..norm_act import SwitchNormAct
from ..sparse import SPARSE
from .example import check_inputs, run_example
from .levels import leave_out_batch, warn_of_levels
from .names import name_layers
from .norms import (
    FOLLOWERS,
    FROZEN,
    STATISTICS,
    Norm,
    acts_frozen,
    eps_of,
    find_norms,
    has_statistics,
)
from .replace import replace_modules

__all__ = ['convert_switch_norm', 'replace_norms']

logger = logging.getLogger(__name__)

_ON_META = (
    'the new layers are on the meta device, where from_pretrained of Transformers leaves their '
    'importance uninitialized unless the file has it: with weights of BatchNorm, convert the model '
    'that from_pretrained returns'
)


def convert_switch_norm(
    model: nn.Module,
    *,
    report: Callable[[str], None] = logger.info,
    select: Callable[[str], bool] = lambda name: True,
    frozen: bool = False,
    inputs: Tensor | tuple[Any, ...] | None = None,
    sparse: bool = False,
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

    Other norms stay, with a line in the report: LayerNorm and other classes that are named as
    norms; norms that do more than torch's (a forward of their own; further parameters, buffers or
    modules, as pruning adds), because SN would drop that part; and frozen BatchNorms
    (torchvision's, MMDetection's, detectron2's and Transformers' ``FrozenBatchNorm2d``), unless
    ``frozen``. A warning names the last two kinds, too.

    A norm that serves several levels of a feature pyramid (the heads of RetinaNet and FCOS) should
    do without the batch scope. ``inputs`` show which these are. Without ``inputs``, a warning comes
    from the first training pass in which a layer meets several sizes.

    Convert before building the optimizer, which must get the new ``mean_weight`` and
    ``var_weight``.

    Args:
        model: Any torch model, a single norm included.
        report: Called with one line for each norm replaced or left, and one that counts them.
            Default: logs at level INFO.
        select: Called with the name of each such norm in ``model``. Where it returns False, the
            norm stays and is not reported. Default: all are replaced.
        frozen: Replace frozen BatchNorms, too, by :class:`sn_mm.frozen.FrozenSwitchNorm2d`, which
            computes the same until it is made to learn. Default: False, they stay.
        inputs: A tensor or a tuple of arguments for one pass of ``model`` in evaluation mode. Norms
            that meet several sizes in it get ``normalizers=('in', 'ln')``, unless
            ``layer_args`` has ``normalizers``. Default: none.
        sparse: Convert to Sparse SN (:class:`sn_mm.SparseSwitchNorm`), whose radius
            :func:`sn_mm.set_radius` raises; SN layers stay. Default: False.
        **layer_args: Arguments of the new layers, in place of what they take from the old ones.
            ``init_importance='bn'`` keeps the function of a BatchNorm network. Without
            ``init_importance`` a BatchNorm with measured statistics becomes SN with
            ``{'bn': 0.9}``, or 'bn' where it is frozen, and other norms start with an equal
            importance.

    Returns:
        ``model``, or the new layer where ``model`` itself is a norm.

    Raises:
        InputError: Arguments of another kind, no norm to convert, ``layer_args`` outside what
            :class:`SwitchNorm` allows, or a lazy norm that has not seen its first input. The model
            is then as it was.
        TypeError: ``layer_args`` that :class:`SwitchNorm` does not have. Likewise.
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    for name, function in (('report', report), ('select', select)):
        check_type(name, function, Callable, 'a function')  # type: ignore[arg-type]
    check_bool('frozen', frozen)
    check_bool('sparse', sparse)
    check_inputs(inputs)
    norms = [norm for norm in find_norms(model) if select(norm.name)]
    chosen = [norm for norm in norms if not norm.reason or (frozen and acts_frozen(norm.module))]
    arguments: dict[Norm, Mapping[str, Any]] = dict.fromkeys(chosen, layer_args)
    levels = {} if inputs is None else _levels(model, inputs, chosen)
    arguments.update(dict.fromkeys(levels, leave_out_batch(layer_args)))
    hint = ', but computes something else' if frozen else ': frozen=True converts it'
    lines = {
        norm: f'{norm} left as it is, {norm.reason}' + (hint if norm.reason == FROZEN else '')
        for norm in norms
        if norm not in chosen
    }
    left = [line for norm, line in lines.items() if norm.layer or has_statistics(norm.module)]
    some = '; '.join(left[:3]) + ('; ...' if len(left) > 3 else '')
    if not chosen:
        raise InputError(
            'no norm to convert: the model has '
            + (some or 'no BatchNorm, SyncBatchNorm, GroupNorm or InstanceNorm that is selected')
        )
    model, layers = replace_norms(model, arguments, sparse)
    for norm, layer in layers.items():
        lines[norm] = f'{norm} -> {type(layer).__name__}'
        if norm in levels:
            lines[norm] += f' {list(layer.normalizers)}, as it meets {levels[norm]} sizes'
    for norm in norms:
        report(lines[norm])
    report(f'Norms converted to Switchable Normalization: {len(layers)}')
    if left:
        warnings.warn(f'{len(left)} norms are not converted: {some}', stacklevel=2)
    if 'transformers' in sys.modules and any(lay.mean_weight.is_meta for lay in layers.values()):
        warnings.warn(_ON_META, stacklevel=2)
    if inputs is None:
        warn_of_levels(layers.values())
    return model


def _levels(
    model: nn.Module, inputs: Tensor | tuple[Any, ...], norms: Iterable[Norm]
) -> dict[Norm, int]:
    """The norms that meet several sizes in one pass, with the number of sizes.

    Frozen norms are left out: their statistics stay as they are.
    """
    by_module = {norm.module: norm for norm in norms if norm.layer}
    _, shapes = run_example(model, inputs, by_module)
    sizes = {by_module[m]: len({shape[2:] for shape in calls}) for m, calls in shapes.items()}
    return {norm: count for norm, count in sizes.items() if count > 1}


def replace_norms(
    model: nn.Module, arguments: Mapping[Norm, Mapping[str, Any]], sparse: bool = False
) -> tuple[nn.Module, dict[Norm, SwitchNorm]]:
    """Replaces norms as :func:`convert_switch_norm` does, without a word if there are none.

    Args:
        model: The model.
        arguments: The norms of it to replace, with arguments of the new layers.
        sparse: By Sparse SN, but for frozen ones.

    Returns:
        ``model``, or the new layer where ``model`` itself is a norm; the new layers.

    Raises:
        InputError, TypeError: As :func:`convert_switch_norm`. The model is as it was.
    """
    fallback = next(model.parameters(), torch.empty(0))
    layers = {norm: _convert(norm, fallback, sparse, args) for norm, args in arguments.items()}
    replacements = {norm.module: layer for norm, layer in layers.items()}
    return name_layers(replace_modules(model, replacements)), layers


def _has_measured(norm: _BatchNorm) -> bool:
    """Whether running statistics are not those of a new layer; old files have no counter."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or mean.is_meta:
        return False
    return bool(mean.any()) or bool((var != 1).any())


def _convert(
    norm: Norm, fallback: torch.Tensor, sparse: bool, layer_args: Mapping[str, Any]
) -> SwitchNorm:
    old: Any = norm.module
    if isinstance(old, nn.modules.lazy.LazyModuleMixin):
        raise InputError(f'{norm} has no num_features before its first input')
    if norm.layer is None:
        return _convert_frozen(old, layer_args)
    statistics = {name: getattr(old, name, None) for name in STATISTICS}
    origin = next(t for t in (old.weight, statistics['running_mean'], fallback) if t is not None)
    args = {
        'eps': old.eps,
        'momentum': getattr(old, 'momentum', 0.1),
        'affine': old.affine,
        'bias': old.bias is not None or not old.affine,
        'track_running_stats': isinstance(old, (_InstanceNorm, nn.GroupNorm))
        or statistics['running_mean'] is not None,
        'device': origin.device,
        'dtype': origin.dtype if origin.is_floating_point() else None,
    }
    if layer_args.get('sync', True) is True:
        group = getattr(old, 'process_group', getattr(old, 'group', None))
        if group is not None and group is not torch.distributed.group.WORLD:
            args['process_group'] = group
    if norm.layer is SwitchNormAct:
        args.update({name: getattr(old, name, None) for name in FOLLOWERS})
    channels = old.num_channels if isinstance(old, nn.GroupNorm) else old.num_features
    kind = SPARSE[norm.layer] if sparse else norm.layer
    new = kind(channels, **{**args, **layer_args})
    if new.affine and old.affine:
        new.weight = old.weight
        if old.bias is not None and new.bias is not None:
            new.bias = old.bias
        for logits in (new.mean_weight, new.var_weight):
            logits.requires_grad_(old.weight.requires_grad)
    for name, value in statistics.items():
        if value is not None and getattr(new, name) is not None:
            setattr(new, name, value)
    if isinstance(old, _BatchNorm) and _has_measured(old):
        new.take_over_batch_norm()
    stopped = statistics['running_mean'] is not None and not old.track_running_stats
    if stopped and 'track_running_stats' not in layer_args:
        new.track_running_stats = False
    return new.train(old.training)


def _convert_frozen(old: Any, layer_args: Mapping[str, Any]) -> FrozenSwitchNorm2d:
    args = {'eps': eps_of(old), 'device': old.weight.device, 'dtype': old.weight.dtype}
    new = FrozenSwitchNorm2d(old.weight.numel(), **{**args, **layer_args})
    for name in ('weight', 'bias'):
        if getattr(new, name) is not None:
            setattr(new, name, nn.Parameter(getattr(old, name), requires_grad=False))
    if new.running_mean is not None:
        new.running_mean, new.running_var = old.running_mean, old.running_var
    return new
