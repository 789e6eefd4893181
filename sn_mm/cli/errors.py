"""Bad input ends a script with one line and exit status 2; everything else keeps its traceback."""

from __future__ import annotations

import os
import sys
import time
import traceback
from functools import wraps
from typing import Callable

from ..errors import InputError

# Seconds that the other ranks leave to local rank 0 to say what is wrong and so to end the job.
_GRACE = 20


def local_rank() -> int:
    """This process's number on its machine, whatever started it, before and after that is known."""
    names = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def _comes_from_layer(error: Exception) -> bool:
    """Whether ``sn_mm`` itself refused its arguments, somewhere inside a toolbox's model."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get('__name__', '').split('.')[0] == 'sn_mm'


def report_input_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Decorates a script's ``main``: bad input becomes one line on stderr and exit status 2.

    Where several processes run, local rank 0 speaks for its machine. The others wait a moment: if
    all have the same to say, local rank 0 says it and the launcher stops the rest.

    Args:
        main: Function that may raise :class:`InputError`, or in which a layer of ``sn_mm`` may
            refuse its arguments with a ``ValueError`` or a ``TypeError``.

    Returns:
        The function with the same behaviour otherwise.
    """

    @wraps(main)
    def run() -> None:
        try:
            main()
        except (ValueError, TypeError) as error:
            if not (isinstance(error, InputError) or _comes_from_layer(error)):
                raise
            if local_rank() != 0:
                time.sleep(_GRACE)
            script = os.path.basename(sys.argv[0])
            print(f'{script}: error:', *str(error).split(), file=sys.stderr, flush=True)
            sys.exit(2)

    return run
