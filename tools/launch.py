"""torchrun for the dist_*.sh scripts, which lets a worker's own error line be the last word."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as failed:
        # 2: the worker refused its input and said why, as argparse does.
        if failed.get_first_failure()[1].exitcode != 2:
            raise
        sys.exit(2)
    except SignalException as stopped:  # Ctrl-C: the workers have been ended
        sys.exit(128 + stopped.sigval)
    except ValueError as error:  # PORT, NNODES or NODE_RANK that torchrun refuses
        sys.exit(f'launch.py: error: {error}')
    except RuntimeError as error:
        if 'EADDRINUSE' not in str(error):
            raise
        sys.exit(f'launch.py: error: the port is in use by another run, set PORT ({error})')
