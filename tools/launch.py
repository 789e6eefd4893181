"""torchrun for the dist_*.sh scripts, without a traceback of its own after a worker's one line."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as failed:
        # 2: the worker refused its input and said why (argparse does the same).
        if failed.get_first_failure()[1].exitcode != 2:
            raise
        sys.exit(2)
