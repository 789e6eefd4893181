"""Tests whose body runs on every rank: real processes that talk over gloo.

Starting processes costs seconds, so the ranks of one size serve all tests of that size. A rank that
fails, dies or hangs fails the test; then all of them are killed, and the next test gets new ones.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import multiprocessing
import os
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sn_mm import distributed

START = 120  # seconds for all ranks to have started
GRACE = 5  # seconds for the other ranks, after one has failed: they may wait for it in vain


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
            try:
                ranks_of(size).run(_run_test, test.__module__, test.__name__, case, limit=timeout)
            except RanksFailed as failed:
                pytest.fail(str(failed), pytrace=False)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        run.on_rank = test  # type: ignore[attr-defined]
        return run

    return decorate


def _run_test(rank: int, module: str, name: str, case: dict[str, Any]) -> None:
    distributed._CHECKS.clear()  # a compiled layer in an earlier test of these ranks has ended them
    getattr(importlib.import_module(module), name).on_rank(rank, dist.get_world_size(), **case)


class RanksFailed(Exception):
    """Some ranks did not return.

    Attributes:
        errors: By rank, the traceback of what it raised, 'died' or 'not finished in ... s'.
        hung: The time was up before any rank raised or died.
    """

    def __init__(self, errors: dict[int, str], hung: bool) -> None:
        super().__init__('\n'.join(f'rank {rank}: {text}' for rank, text in errors.items()))
        self.errors, self.hung = errors, hung


class Ranks:
    """``size`` processes that wait for work, as one gloo group. They start with the first work."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[BaseProcess] = []
        self._pools: list[ProcessPoolExecutor] = []  # each of one process, its rank

    def run(self, work: Callable[..., Any], *arguments: Any, limit: float = 60) -> list[Any]:
        """Calls ``work(rank, *arguments)`` on every rank, and returns their results.

        Args:
            work: A function that pickle finds by its name.
            arguments: What it takes beside the rank.
            limit: Seconds after which a rank that has not finished has hung.

        Raises:
            RanksFailed: A rank raised, hung or died, be it before this work. All of them have been
                killed.
        """
        try:
            if not self._pools:
                self._start()
            return self._run(work, arguments, limit)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kills the processes, and waits until they are gone."""
        for process in self.processes:
            process.kill()
        for pool in self._pools:
            pool.shutdown()
        self._pools, self.processes = [], []

    def _start(self) -> None:
        context = mp.get_context('forkserver')
        # Imported once, not by each rank; DistributedDataParallel imports the first.
        context.set_forkserver_preload(['torch._dynamo', 'sn_mm', 'pytest'])
        self._pools = [ProcessPoolExecutor(1, context) for _ in range(self.size)]
        starting = [pool.submit(os.getpid) for pool in self._pools]
        self.processes = [process for pool in self._pools for process in pool._processes.values()]
        wait(starting, START)
        self._folder = tempfile.TemporaryDirectory()  # its file serves later groups too
        self._run(_join, (self.size, f'file://{self._folder.name}/store'), START)

    def _run(self, work: Callable[..., Any], arguments: Sequence[Any], limit: float) -> list[Any]:
        futures = [
            _submit(pool, _call, work, rank, *arguments) for rank, pool in enumerate(self._pools)
        ]
        _, pending = wait(futures, limit, FIRST_EXCEPTION)
        failed = any(future.done() and future.exception() for future in futures)
        if failed:
            wait(pending, GRACE)
        errors = {rank: self._error(rank, future, limit) for rank, future in enumerate(futures)}
        if any(errors.values()):
            raise RanksFailed({k: text for k, text in errors.items() if text}, hung=not failed)
        return [future.result() for future in futures]

    def _error(self, rank: int, future: Future, limit: float) -> str:
        """Why a rank has no result; '' if it has one."""
        if not future.done():
            return f'not finished in {limit:g} s'
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            self._pools[rank].shutdown()  # while its thread reads the exit code, nobody else may
            return f'died with exit code {self.processes[rank].exitcode}'  # -N: of signal N
        return str(error or '')


def _submit(pool: ProcessPoolExecutor, *work: Any) -> Future:
    try:
        return pool.submit(*work)
    except BrokenProcessPool as error:  # its process has died since the work before
        future: Future = Future()
        future.set_exception(error)
        return future


def _join(rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group('gloo', store, timeout, size, rank)
    faulthandler.enable()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A pool's process holds both ends of its pipes: by them it does not see its parent die."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(work: Callable[..., Any], rank: int, *arguments: Any) -> Any:
    torch.manual_seed(0)
    try:
        return work(rank, *arguments)
    except BaseException:  # as text: the traceback stays, and not every exception can be pickled
        raise RuntimeError(traceback.format_exc().strip()) from None
    finally:
        gc.collect()


@cache
def ranks_of(size: int) -> Ranks:
    """The ranks that all tests of this size share."""
    return Ranks(size)
