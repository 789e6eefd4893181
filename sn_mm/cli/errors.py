"""Bad input ends a script with one line and exit status 2; everything else keeps its traceback."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Callable

from ..errors import InputError

# Seconds that the other ranks wait while local rank 0 prints the error and so ends the job.
_GRACE = 20
_REGISTRY = 'mmengine', 'registry', 'build_functions.py'


def local_rank() -> int:
    """This process's number on its machine, from the launcher's environment variables; else 0."""
    names = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
    given = next((os.environ[name] for name in names if name in os.environ), '0')
    return int(given) if given.isdecimal() else 0


def check_labels(labels: Sequence[str], number: int, kind: str) -> None:
    """Checks ``--labels``, or what stands in for them.

    Args:
        labels: The labels.
        number: Of the things that they are for.
        kind: Those things, for the message.

    Raises:
        InputError: They are more or fewer, or two are the same.
    """
    if len(labels) != number or len(set(labels)) < number:
        raise InputError(
            f'--labels must name each of the {number} {kind} differently, got {", ".join(labels)}'
        )


def _raised_by_registry(error: Exception) -> bool:
    """Whether a config names a type that is not registered, or arguments that a type does not take.

    The error is then raised by mmengine's registry, or by a class that it builds and that hands
    its arguments on to its base class.
    """
    frames = traceback.extract_tb(error.__traceback__)
    building = [Path(frame.filename).parts[-3:] == _REGISTRY for frame in frames]
    return building[-1] or (any(building) and 'got an unexpected keyword argument' in str(error))


def report_input_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Decorates the function of a command: bad input becomes one line and exit status 2.

    A type in a config that mmengine's registries do not know, or do not build with its arguments,
    is bad input too.

    Where several processes run, local rank 0 prints for its machine. The others wait before they
    print: if all meet the same error, the launcher stops them once local rank 0 has ended.

    Args:
        main: Function that may raise :class:`InputError`.

    Returns:
        The function with the same behaviour otherwise.
    """

    @wraps(main)
    def run(*args: Any) -> None:
        try:
            main(*args)
        except (InputError, KeyError, TypeError) as error:
            if not isinstance(error, InputError) and not _raised_by_registry(error):
                raise
            if local_rank() != 0:
                time.sleep(_GRACE)
            script = os.path.basename(sys.argv[0])
            text = error.args[0] if isinstance(error, KeyError) else str(error)
            line = text.partition(' Please check whether')[0]
            print(f'{script}: error:', *line.split(), file=sys.stderr, flush=True)
            _end(2)

    return run


def _end(status: int) -> None:
    """Ends this process, without Python's shutdown if it is one of several.

    A thread of gloo that lets go of its last tensor during the shutdown aborts the process, and so
    changes its exit status. After an error the group of the ranks cannot be left as usual, see
    :func:`sn_mm.cli.launch.launched`.
    """
    torch = sys.modules.get('torch')  # not imported for this alone
    if (
        torch is None
        or not torch.distributed.is_available()
        or not torch.distributed.is_initialized()
    ):
        sys.exit(status)
    for worker in multiprocessing.active_children():
        if worker.daemon:  # of a data loader; only the shutdown would end it at once
            worker.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
