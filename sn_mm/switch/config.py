"""The switch of a whole config, including the norms that no config reaches."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import InputError
from ..layer import SwitchNorm
from ..model.norms import Norm, find_norms
from .components import ALREADY, needs_process_group, resolve
from .extent import reason_to_leave
from .importance import split_importance
from .nodes import dicts
from .report import Left, Switched, SwitchReport
from .rewrite import NothingToSwitch, switch_norm_cfg, write_training
from .target import check_target, is_sn
from .toolbox import model_type, toolbox
from .unconverted import extent_of, replace_unconverted

_HARD_CODED = 'hard-coded: only a switch to SN converts it'


def switch_config(cfg: Config, norm_cfg: dict, extent: str) -> SwitchReport:
    """Switches the norms of a config, including those that no config reaches.

    The model is built once to see which norms no config reaches. If there are any, and the switch
    is to SN, the config's model is built as ``sn_mm.SwitchedModel`` from then on, which converts
    them. A switch to another norm leaves them, and the report says so.

    Args:
        cfg: The complete config, changed in place.
        norm_cfg, extent: As for :func:`sn_mm.switch_norm_cfg`.

    Returns:
        The norms switched and left.

    Raises:
        NothingToSwitch: No norm can be switched, and not all are such norms already.
        InputError: As :func:`sn_mm.switch_norm_cfg`; another norm than SN does not fit the model,
            as GN where the groups do not divide the channels.
    """
    layer_cfg, lr_mult = split_importance(norm_cfg)
    target = check_target(layer_cfg)
    to_sn = is_sn(target)
    nothing = None
    try:
        report = switch_norm_cfg(cfg, norm_cfg, extent)
    except NothingToSwitch as error:
        nothing, report = error, SwitchReport()
    with DefaultScope.overwrite_default_scope(toolbox(cfg)):
        settings = copy.deepcopy(cfg.model)  # the build changes it in place
        _need_no_process_group(settings, toolbox(cfg))
        try:
            model = MODELS.build(settings)
        except ValueError as error:
            if to_sn:
                raise
            raise InputError(f'{norm_cfg["type"]} does not fit the model: {error}') from error
    norms = find_norms(model)
    inside = [norm for norm in norms if norm.layer and not reason_to_leave(norm.name, extent)]
    if nothing and not inside:
        raise nothing
    layers: dict[Norm, SwitchNorm] = {}
    if to_sn:
        layers = replace_unconverted(model, norms, layer_cfg, extent)
        if nothing and not layers:
            names = ', '.join(norm.name for norm in inside)
            raise InputError(f'{nothing}; those hard-coded in it do more than a norm: {names}')
    else:
        wanted = resolve(norm_cfg['type'], toolbox(cfg))
        norms = [norm for norm in norms if not _same_norm(norm, wanted)]
        if nothing and not set(inside).isdisjoint(norms):
            raise nothing
    if layers:
        _convert_when_built(cfg, {'norm_cfg': layer_cfg, 'extent': extent})
        if nothing:
            report.notes += write_training(cfg, target, extent, lr_mult)
    _report(report, norms, layers, extent)
    return report


def _same_norm(norm: Norm, wanted: type[nn.Module]) -> bool:
    """Whether a norm is of a class's kind, of any number of dimensions."""
    families = (nn.SyncBatchNorm, _BatchNorm, nn.GroupNorm, _InstanceNorm)
    return isinstance(norm.module, next(f for f in families if issubclass(wanted, f)))


def _need_no_process_group(model: dict, registry_scope: str) -> None:
    """Turns each MMSyncBN into SyncBN, since it asks for a process group when it is built."""
    for config in dicts(model):
        if 'type' in config and needs_process_group(resolve(config['type'], registry_scope)):
            config['type'] = 'SyncBN'
            config.pop('group', None)
            config.pop('stats_mode', None)


def _convert_when_built(cfg: Config, switch: dict) -> None:
    """Makes the config's model convert its hard-coded norms, after the switches before this one."""
    first = cfg.model.get('switched') or {'type': model_type(cfg)}
    switched = {**first, **switch}
    if 'norm_cfg' in first:
        before = {'norm_cfg': first['norm_cfg'], 'extent': extent_of(first)}
        switched['earlier'] = [*first.get('earlier', ()), before]
        switched.pop('scope', None)
    cfg.model.switched = switched
    cfg.model.type = 'sn_mm.SwitchedModel'


def _report(
    report: SwitchReport, norms: list[Norm], layers: Mapping[Norm, SwitchNorm], extent: str
) -> None:
    """Adds one line for each component and kind of norm of the built model.

    The model shows the norms of the config as well, so the config's lines on norms left go.
    """
    switched: Counter[tuple[str, str, str]] = Counter()
    left: dict[tuple[str, str, str], list[str]] = {}
    for norm in norms:
        component, kind = '.'.join(norm.name.split('.')[:2]), type(norm.module).__name__
        if norm in layers:
            new = f'{type(layers[norm]).__name__}, normalizers={list(layers[norm].normalizers)}'
            switched[component, kind, new] += 1
        else:
            reason = reason_to_leave(norm.name, extent) or norm.reason or _HARD_CODED
            left.setdefault((component, kind, reason), []).append(norm.name)
    for (component, kind, new), count in switched.items():
        reason = 'hard-coded: converted when the model is built'
        report.switched.append(Switched(component, f'{kind} ({count})', new, reason))
    report.left = [entry for entry in report.left if entry.reason == ALREADY or not entry.norm]
    for (component, kind, reason), names in left.items():
        if len(names) == 1:
            report.left.append(Left(names[0], kind, reason))
        else:
            report.left.append(Left(component, f'{kind} ({len(names)})', reason))
