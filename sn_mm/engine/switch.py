"""``--norm SN``: the switch of a ready-made config on the command line."""

from __future__ import annotations

import copy
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from torch import nn

from ..layer import SwitchNorm
from ..switch import (
    SCOPES,
    Left,
    NothingToSwitch,
    Switched,
    SwitchReport,
    convert_leftovers,
    find_leftovers,
    switch_norm_cfg,
)
from .config import CfgOptions, toolbox
from .errors import InputError, local_rank

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
        choices=SCOPES,
        help='existing: every norm (the default); backbone: those of the backbone; all: every '
        'norm, and neck, box head and mask head get SN where they have none',
    )


def switch_norms(cfg: Config, args: Namespace) -> None:
    """Switches the norms of a config as the command line says, and prints what changed.

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
    scope = args.norm_scope or 'existing'
    nothing = None
    try:
        report = switch_norm_cfg(cfg, norm_cfg, scope)
    except NothingToSwitch as error:
        nothing, report = error, SwitchReport()
    with DefaultScope.overwrite_default_scope(toolbox(cfg)):
        model = MODELS.build(copy.deepcopy(cfg.model))  # which changes its config in place
    leftovers = find_leftovers(model, scope)
    if nothing and not leftovers:
        raise nothing
    if leftovers:
        convert_leftovers(model, norm_cfg, scope)
        _report_leftovers(report, leftovers, dict(model.named_modules()))
        cfg.model.switched = {'type': _full_name(cfg), 'norm_cfg': norm_cfg, 'scope': scope}
        cfg.model.type = 'sn_mm.SwitchedModel'
    if local_rank() == 0:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(report.table())


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
    """The type of the model, such that it is found without a default scope."""
    kind = cfg.model.type
    if not isinstance(kind, str):
        return f'{kind.__module__}.{kind.__qualname__}'
    return kind if '.' in kind else f'{toolbox(cfg)}.{kind}'
