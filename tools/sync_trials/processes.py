"""Ranks that live for many trials; those that hang or die are counted, ended and replaced."""

from __future__ import annotations

import gc
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Work = Callable[..., Any]


class Outcome(NamedTuple):
    """What became of one trial.

    Attributes:
        hung: Some rank was not done when the time was up.
        errors: By rank, the traceback of what it raised, or 'died'.
        results: Of all ranks, where none hung or raised.
    """

    hung: bool
    errors: dict[int, str]
    results: list[Any]


class Ranks:
    """``size`` gloo processes that wait for work.

    Args:
        size: How many.
        limit: Seconds that a trial may take. The ranks' own timeout is twice as long.
    """

    def __init__(self, size: int, limit: float) -> None:
        self.size, self.limit = size, limit
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def run(self, work: Work, *arguments: Any) -> Outcome:
        """Calls ``work(rank, *arguments)`` on every rank."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((work, arguments))
        deadline = time.monotonic() + self.limit
        results: dict[int, Any] = {}
        errors: dict[int, str] = {}
        pending = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while pending and (ready := wait(list(pending), max(0, deadline - time.monotonic()))):
            for pipe in ready:
                rank = pending.pop(pipe)  # type: ignore[arg-type]
                try:
                    error, results[rank] = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    error = 'died'
                if error:  # the others may wait for this rank in vain
                    errors[rank] = error
                    deadline = min(deadline, time.monotonic() + 5)
        hung = bool(pending) and not errors
        if pending or errors:
            self.stop()
        return Outcome(hung, errors, [results.get(rank) for rank in range(self.size)])

    def stop(self) -> None:
        """Ends the processes, and waits until they are gone."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._processes, self._pipes = [], []
        if self._folder:
            self._folder.cleanup()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context = mp.get_context('forkserver')
        # Imported once, not by each rank; DistributedDataParallel imports the first.
        context.set_forkserver_preload(['torch._dynamo', 'sn_mm'])
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            arguments = rank, self.size, f'{self._folder.name}/store', self.limit, theirs
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(rank: int, size: int, store: str, limit: float, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo',
        init_method=f'file://{store}',
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=2 * limit),
    )
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:  # the command has ended
            return
        try:
            result = work(rank, *arguments)
        except Exception:
            pipe.send((traceback.format_exc().strip(), None))
        else:
            pipe.send(('', result))
        gc.collect()
