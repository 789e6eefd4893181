"""The switch of a whole config, those norms included that no config reaches."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import InputError
from ..layer import SwitchNorm
from .components import needs_process_group, resolve
from .report import Left, Switched, SwitchReport
from .rewrite import NothingToSwitch, switch_norm_cfg
from .target import check_target, is_sn
from .toolbox import model_type, toolbox
from .unconverted import convert_unconverted, extent_of, find_unconverted


def switch_config(cfg: Config, norm_cfg: dict, extent: str) -> SwitchReport:
    """Switches the norms of a config, those that no config reaches included.

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
    to_sn = is_sn(check_target(norm_cfg))
    nothing = None
    try:
        report = switch_norm_cfg(cfg, norm_cfg, extent)
    except NothingToSwitch as error:
        nothing, report = error, SwitchReport()
    with DefaultScope.overwrite_default_scope(toolbox(cfg)):
        settings = copy.deepcopy(cfg.model)  # which the build changes in place
        _need_no_process_group(settings, toolbox(cfg))
        try:
            model = MODELS.build(settings)
        except ValueError as error:
            if to_sn:
                raise
            raise InputError(f'{norm_cfg["type"]} does not fit the model: {error}') from error
    leftovers = find_unconverted(model, extent)
    if nothing and not leftovers:
        raise nothing
    if not to_sn:
        wanted = resolve(norm_cfg['type'], toolbox(cfg))
        others = [
            Left(name, kind.__name__, 'hard-coded: only a switch to SN converts it')
            for name, kind in leftovers
            if not _same_norm(kind, wanted)
        ]
        if nothing and others:
            raise nothing
        report.left += others
    elif leftovers:
        convert_unconverted(model, norm_cfg, extent)
        layers = dict(model.named_modules())
        names = [name for name, _ in leftovers]
        if nothing and not any(isinstance(layers[name], SwitchNorm) for name in names):
            raise InputError(
                f'{nothing}; those hard-coded in it do more than a norm: {", ".join(names)}'
            )
        _report_leftovers(report, leftovers, layers)
        _convert_when_built(cfg, {'norm_cfg': norm_cfg, 'extent': extent})
    return report


def _same_norm(kind: type[nn.Module], wanted: type[nn.Module]) -> bool:
    """Whether two classes are the same norm, of any number of dimensions."""
    families = (nn.SyncBatchNorm, _BatchNorm, nn.GroupNorm, _InstanceNorm)
    return next(issubclass(kind, f) for f in families if issubclass(wanted, f))


def _need_no_process_group(config: Any, registry_scope: str) -> None:
    """Makes SyncBN of each MMSyncBN, which asks for a process group as soon as it is built."""
    children: Iterable[Any] = ()
    if isinstance(config, (list, tuple)):
        children = config
    elif isinstance(config, dict):
        children = dict.values(config)  # not ConfigDict's, which import what a lazy config names
        if 'type' in config and needs_process_group(resolve(config['type'], registry_scope)):
            config['type'] = 'SyncBN'
            config.pop('group', None)
            config.pop('stats_mode', None)
    for child in children:
        _need_no_process_group(child, registry_scope)


def _convert_when_built(cfg: Config, switch: dict) -> None:
    """Makes the config's model one whose hard-coded norms are converted, after earlier ones."""
    first = cfg.model.get('switched') or {'type': model_type(cfg)}
    switched = {**first, **switch}
    if 'norm_cfg' in first:
        before = {'norm_cfg': first['norm_cfg'], 'extent': extent_of(first)}
        switched['earlier'] = [*first.get('earlier', ()), before]
        switched.pop('scope', None)
    cfg.model.switched = switched
    cfg.model.type = 'sn_mm.SwitchedModel'


def _report_leftovers(
    report: SwitchReport,
    leftovers: list[tuple[str, type[nn.Module]]],
    layers: dict[str, nn.Module],
) -> None:
    """Adds one line for each component and kind of norm, and for each norm that stays."""
    converted: Counter[tuple[str, str, str]] = Counter()
    for name, kind in leftovers:
        layer = layers[name]
        if isinstance(layer, SwitchNorm):
            new = f'{type(layer).__name__}, normalizers={list(layer.normalizers)}'
            converted['.'.join(name.split('.')[:2]), kind.__name__, new] += 1
        else:
            report.left.append(Left(name, kind.__name__, 'does more than a norm: not converted'))
    for (component, old, new), count in converted.items():
        reason = 'hard-coded: converted when the model is built'
        report.switched.append(Switched(component, f'{old} ({count})', new, reason))
