"""``--norm SN``: the switch of a ready-made config on the command line."""

from __future__ import annotations

import copy
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from torch import nn

from ..errors import InputError
from ..layer import SwitchNorm
from ..switch import (
    EXTENTS,
    Left,
    NothingToSwitch,
    Switched,
    SwitchReport,
    convert_leftovers,
    find_leftovers,
    switch_norm_cfg,
)
from ..switch.components import needs_process_group, resolve
from ..switch.toolbox import toolbox
from .config import CfgOptions
from .errors import local_rank

_WIDTH = 160  # of the table where it goes to a file


def add_switch_arguments(parser: ArgumentParser) -> None:
    """Adds the options that switch the norms of a config."""
    parser.add_argument('--norm', help='switch all norms of the config: SN')
    parser.add_argument(
        '--norm-arg',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='arguments of the layer, for example normalizers="[in,ln]" sync=False',
    )
    parser.add_argument(
        '--norm-scope',
        choices=EXTENTS,
        help='existing: every norm (the default); backbone: those of the backbone; all: every '
        'norm, and neck, box head and mask head get SN where they have none',
    )


def switch_norms(cfg: Config, args: Namespace) -> None:
    """Switches the norms of a config as the options ask, and prints a table of the changes.

    The model is built once to see which norms no config reaches. If there are any, the config's
    model is built as ``sn_mm.SwitchedModel`` from then on, which converts them.

    Args:
        cfg: The complete config, changed in place.
        args: The parsed options of :func:`add_switch_arguments`.

    Raises:
        InputError: As :func:`sn_mm.switch_norm_cfg`, or if there is a ``--norm-...`` without
            ``--norm``.
    """
    if args.norm is None:
        if args.norm_arg or args.norm_scope:
            raise InputError('--norm-arg and --norm-scope need --norm SN')
        return
    norm_cfg = {'type': args.norm, **(args.norm_arg or {})}
    extent = args.norm_scope or 'existing'
    nothing = None
    try:
        report = switch_norm_cfg(cfg, norm_cfg, extent)
    except NothingToSwitch as error:
        nothing, report = error, SwitchReport()
    with DefaultScope.overwrite_default_scope(toolbox(cfg)):
        settings = copy.deepcopy(cfg.model)  # which the build changes in place
        _need_no_process_group(settings, toolbox(cfg))
        model = MODELS.build(settings)
    leftovers = find_leftovers(model, extent)
    if nothing and not leftovers:
        raise nothing
    if leftovers:
        convert_leftovers(model, norm_cfg, extent)
        layers = dict(model.named_modules())
        names = [name for name, _ in leftovers]
        if nothing and not any(isinstance(layers[name], SwitchNorm) for name in names):
            raise InputError(
                f'{nothing}; those hard-coded in it do more than a norm: {", ".join(names)}'
            )
        _report_leftovers(report, leftovers, layers)
        _convert_when_built(cfg, {'norm_cfg': norm_cfg, 'scope': extent})
    if local_rank() == 0:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(report.table())


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
    first = cfg.model.get('switched')
    if first is None:
        cfg.model.switched = {'type': _full_name(cfg), **switch}
        cfg.model.type = 'sn_mm.SwitchedModel'
    else:
        before = {'norm_cfg': first['norm_cfg'], 'scope': first.get('scope', 'existing')}
        earlier = [*first.get('earlier', ()), before]
        cfg.model.switched = {'type': first['type'], **switch, 'earlier': earlier}


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


def _full_name(cfg: Config) -> str:
    """The type of the model with its registry scope, so that it needs no default scope."""
    kind = cfg.model.type
    if not isinstance(kind, str):
        return f'{kind.__module__}.{kind.__qualname__}'
    return kind if '.' in kind else f'{toolbox(cfg)}.{kind}'
