"""Several processes of a command on one machine, or its part of those on several: torchrun's."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from . import PROGRAM


def start(processes: int, words: Sequence[str]) -> None:
    """Starts a command as several processes, and waits for them.

    The environment says more, as for OpenMMLab's scripts: ``PORT`` (default: a free one) and, for
    several machines, ``NNODES``, ``NODE_RANK`` and ``MASTER_ADDR``. The cores are shared out unless
    ``OMP_NUM_THREADS`` is set.

    A process that ends with its own line and exit status 2 has the last word. So has Ctrl-C.

    Args:
        processes: On this machine.
        words: The command line of each, without ``sn-mm``.
    """
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    os.environ.setdefault('OMP_NUM_THREADS', threads)
    os.environ.setdefault('MKL_NUM_THREADS', os.environ['OMP_NUM_THREADS'])
    # torchrun puts the interpreter in front of the program.
    command = [*_place(), f'--nproc_per_node={processes}', *PROGRAM[1:], *words]
    try:
        torchrun(command)
    except ChildFailedError as failed:
        if failed.get_first_failure()[1].exitcode != 2:
            raise
        sys.exit(2)
    except SignalException as stopped:  # the processes have been ended
        sys.exit(128 + stopped.sigval)
    except ValueError as error:  # PORT, NNODES or NODE_RANK that torchrun refuses
        _refuse(str(error))
    except RuntimeError as error:
        if 'EADDRINUSE' not in str(error):
            raise
        _refuse(f'the port is in use by another run, set PORT ({error})')


def _place() -> list[str]:
    """torchrun's options for where the processes meet."""
    nodes, port = os.environ.get('NNODES', '1'), os.environ.get('PORT')
    if nodes == '1' and not port:
        return ['--standalone', '--local_addr=127.0.0.1']  # takes a free port and keeps it
    return [
        f'--nnodes={nodes}',
        f'--node_rank={os.environ.get("NODE_RANK", "0")}',
        f'--master_addr={os.environ.get("MASTER_ADDR", "127.0.0.1")}',
        f'--master_port={port or 29500}',
    ]


def _refuse(reason: str) -> None:
    print(f'{sys.argv[0]}: error:', *reason.split(), file=sys.stderr)
    sys.exit(2)
