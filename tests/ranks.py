"""Tests whose body runs on every rank: real processes that talk over gloo.

Starting processes costs seconds, so the ranks of one size serve all tests of that size. A rank that
fails, dies or hangs fails the test; then all of them are replaced.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(
    *sizes: int, cases: Sequence[dict[str, Any]] = ({},), timeout: float = 60
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs the decorated test, ``test(rank, size, **case)``, on all ranks at once.

    Args:
        sizes: Numbers of ranks, one test each.
        cases: Further arguments, one test each.
        timeout: Seconds after which a rank that has not finished fails the test.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize('case', cases, ids=lambda c: ' '.join(map(str, c.values())) or '-')
        @pytest.mark.parametrize('size', sizes)
        def run(size: int, case: dict[str, Any]) -> None:
            _ranks(size).run(test.__module__, test.__name__, case, timeout)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        run.on_rank = test  # type: ignore[attr-defined]
        return run

    return decorate


class _Ranks:
    def __init__(self, size: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        context = mp.get_context('forkserver')
        # Imported once, not by each rank; DistributedDataParallel imports the first.
        context.set_forkserver_preload(['torch._dynamo', 'sn_mm', 'pytest'])
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            args = rank, size, f'{self.folder.name}/store', theirs
            self.processes.append(context.Process(target=_serve, args=args, daemon=True))
            self.pipes.append(ours)
            self.processes[-1].start()
            theirs.close()

    def run(self, module: str, name: str, case: dict[str, Any], timeout: float) -> None:
        for pipe in self.pipes:
            pipe.send((module, name, case))
        failures = dict.fromkeys(range(len(self.pipes)), f'not finished in {timeout} s')
        deadline = time.monotonic() + timeout
        pending = dict(zip(self.pipes, failures))
        while pending and (ready := wait(list(pending), max(0, deadline - time.monotonic()))):
            for pipe in ready:
                rank = pending.pop(pipe)
                try:
                    failures[rank] = pipe.recv()
                except EOFError:
                    failures[rank] = 'died'
                if failures[rank]:  # the others may wait for this rank in vain
                    deadline = min(deadline, time.monotonic() + 5)
        failures = {rank: text for rank, text in failures.items() if text}
        if failures:
            self.stop()
            pytest.fail(
                '\n'.join(f'rank {rank}: {text}' for rank, text in failures.items()), pytrace=False
            )

    def stop(self) -> None:
        _ranks.cache_clear()
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


@cache
def _ranks(size: int) -> _Ranks:
    return _Ranks(size)


def _serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo',
        init_method=f'file://{store}',
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    while True:
        try:
            module, name, case = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            getattr(importlib.import_module(module), name).on_rank(rank, size, **case)
        except BaseException:
            pipe.send(traceback.format_exc())
        else:
            pipe.send(None)
        gc.collect()
