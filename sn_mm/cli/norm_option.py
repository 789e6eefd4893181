"""``--norm SN [KEY=VALUE ...]``: the switch of a ready-made config on the command line."""

from __future__ import annotations

import sys
from argparse import Namespace

from mmengine.config import Config
from rich.console import Console

from ..errors import InputError
from ..switch import switch_config
from ..switch.option import parse_norm
from .errors import local_rank

_WIDTH = 160  # of the table where it goes to a file


def switch_norms(cfg: Config, args: Namespace) -> None:
    """Switches the norms of a config as the options ask, and prints a table of the changes.

    Args:
        cfg: The complete config, changed in place.
        args: The options ``norm`` and ``norm_extent``.

    Raises:
        InputError: As :func:`parse_norm` and :func:`switch_config`, or if there is
            ``--norm-extent`` without ``--norm``.
    """
    if args.norm is None:
        if args.norm_extent:
            raise InputError('--norm-extent needs --norm SN')
        return
    report = switch_config(cfg, parse_norm(args.norm), args.norm_extent or 'existing')
    if local_rank() == 0:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(report.table())
