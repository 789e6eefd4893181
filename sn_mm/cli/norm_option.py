"""``--norm SN [KEY=VALUE ...]``: the switch of a ready-made config on the command line."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from typing import Any

from mmengine.config import Config
from rich.console import Console

from ..errors import InputError
from ..switch import EXTENTS, switch_config
from ..switch.target import check_target
from .config import CfgOptions
from .errors import local_rank

_WIDTH = 160  # of the table where it goes to a file


class NormOption(CfgOptions):
    """``TYPE [KEY=VALUE ...]`` as a norm_cfg; ``a.b=1`` gives ``a`` the value ``{'b': 1}``."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: Any = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise InputError(f'{option} is given twice, one norm is allowed')
        kind, *pairs = values
        wrong = [pair for pair in pairs if '=' not in pair]
        if '=' in kind or wrong:
            raise InputError(
                f'{option} takes TYPE [KEY=VALUE ...], such as SN sync=False, got '
                f'{" ".join(values)!r}; CONFIG goes before it'
            )
        super().__call__(parser, namespace, pairs, option)
        given = Config()
        given.merge_from_dict(getattr(namespace, self.dest))
        if 'type' in given:
            raise InputError(f'{option} names the norm first, without type=, got {values}')
        setattr(namespace, self.dest, {'type': kind, **given.to_dict()})


def parse_norm(text: str) -> dict:
    """Reads a norm as ``--norm`` does, from one string: ``'SN normalizers=[in,ln]'``.

    Returns:
        The checked norm_cfg.

    Raises:
        InputError: As :class:`NormOption` and :func:`sn_mm.switch_norm_cfg`.
    """
    parser = ArgumentParser()
    parser.add_argument('--norm', nargs='+', action=NormOption)
    return check_target(parser.parse_args(['--norm', *(text.split() or [''])]).norm)


def add_switch_arguments(parser: ArgumentParser) -> None:
    """Adds the options that switch the norms of a config."""
    parser.add_argument(
        '--norm',
        nargs='+',
        action=NormOption,
        metavar=('TYPE', 'KEY=VALUE'),
        help='switch all norms of the config to SN, with arguments of the layer, for example SN '
        'normalizers=[in,ln] sync=False; or to BN, SyncBN, GN num_groups=32 or IN',
    )
    add_extent_argument(
        parser,
        help='existing: every norm (the default); backbone: those of the backbone; all: every '
        'norm, and neck, box head and mask head get SN where they have none',
    )


def add_extent_argument(parser: ArgumentParser, **options: Any) -> None:
    """Adds ``--norm-extent``, and its name in version 1.0, which works until version 1.2."""
    extent = parser.add_argument('--norm-extent', choices=EXTENTS, **options)
    parser.add_argument(
        '--norm-scope',
        action=_RenamedOption,
        dest=extent.dest,
        choices=EXTENTS,
        default=SUPPRESS,
        help=SUPPRESS,
    )


class _RenamedOption(Action):
    """An option under its old name, which it says."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: Any = None
    ) -> None:
        new = f'--{self.dest.replace("_", "-")}'
        print(f'{parser.prog}: {option} is called {new} since version 1.1', file=sys.stderr)
        setattr(namespace, self.dest, values)


def switch_norms(cfg: Config, args: Namespace) -> None:
    """Switches the norms of a config as the options ask, and prints a table of the changes.

    Args:
        cfg: The complete config, changed in place.
        args: The parsed options of :func:`add_switch_arguments`.

    Raises:
        InputError: As :func:`switch_config`, or if there is ``--norm-extent`` without ``--norm``.
    """
    if args.norm is None:
        if args.norm_extent:
            raise InputError('--norm-extent needs --norm SN')
        return
    report = switch_config(cfg, args.norm, args.norm_extent or 'existing')
    if local_rank() == 0:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(report.table())
