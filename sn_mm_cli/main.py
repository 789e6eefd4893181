"""``sn-mm COMMAND ...``: reads the arguments of a command, and runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from . import PROGRAM, parsers

# Packages that another name installs.
_INSTALLED_BY = {'cv2': 'opencv-python', 'pkg_resources': "'setuptools<82'"}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names, or lists the commands.

    Bad input ends it with one line and exit status 2.

    Args:
        words: The command line. Default: that of this process.
    """
    name, *arguments = (sys.argv[1:] if words is None else words) or ['help']
    if name == 'help' and arguments:
        name, *arguments = arguments[0], '--help'
    if name in ('help', '-h', '--help'):
        print(_overview())
        return
    if name == '--version':
        from sn_mm.version import __version__

        print(__version__)
        return
    if name not in parsers.COMMANDS:
        _refuse('sn-mm', f'COMMAND must be one of {", ".join(parsers.COMMANDS)}, got {name!r}')
    args = parsers.make_parser(name).parse_args(arguments)
    sys.argv = [f'sn-mm {name}', *arguments]
    if getattr(args, 'start_processes', None) and args.launcher != 'pytorch':
        if args.launcher != 'none':
            _refuse(sys.argv[0], f'--processes and --launcher {args.launcher} exclude each other')
        from .processes import start

        start(args.start_processes, [name, *arguments, '--launcher', 'pytorch'])
        return
    try:
        command = import_module(f'sn_mm.cli.{name.replace("-", "_")}')
    except ModuleNotFoundError as error:
        missing = (error.name or '').partition('.')[0]
        if missing in ('', 'sn_mm'):
            raise
        package = _INSTALLED_BY.get(missing, missing)
        _refuse(sys.argv[0], f'{missing} is not installed: pip install {package}')
    args.program = PROGRAM
    command.run(args)


def _overview() -> str:
    lines = (f'  {name:20}{line}' for name, (line, _) in parsers.COMMANDS.items())
    return '\n'.join(
        ['usage: sn-mm COMMAND ...   (sn-mm help COMMAND lists its options)', '', *lines]
    )


def _refuse(program: str, reason: str) -> NoReturn:
    print(f'{program}: error: {reason}', file=sys.stderr)
    sys.exit(2)
