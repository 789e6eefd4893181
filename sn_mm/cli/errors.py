"""Bad input ends a script with one line and exit status 2; everything else keeps its traceback."""

from __future__ import annotations

import os
import sys
import time
from functools import wraps
from typing import Callable

from ..errors import InputError

# Seconds that the other ranks wait while local rank 0 prints the error and so ends the job.
_GRACE = 20


def local_rank() -> int:
    """This process's number on its machine, from the launcher's environment variables; else 0."""
    names = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def report_input_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Decorates a script's ``main``: bad input becomes one line on stderr and exit status 2.

    Where several processes run, local rank 0 prints for its machine. The others wait first: if all
    meet the same error, the launcher stops them once local rank 0 has ended.

    Args:
        main: Function that may raise :class:`InputError`.

    Returns:
        The function with the same behaviour otherwise.
    """

    @wraps(main)
    def run() -> None:
        try:
            main()
        except InputError as error:
            if local_rank() != 0:
                time.sleep(_GRACE)
            script = os.path.basename(sys.argv[0])
            print(f'{script}: error:', *str(error).split(), file=sys.stderr, flush=True)
            sys.exit(2)

    return run
