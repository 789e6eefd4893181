"""One process for each task, forked after all imports.

Not by ``concurrent.futures``: where a task dies, its pool breaks for all, it has no limits of one
task, and no result of a task that did not come to its end. Nor by ``tests/ranks.py``, whose
processes are few and serve one task after the other.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

Work = Callable[[Any, Callable[[dict], None]], dict]


@dataclass(frozen=True)
class Limits:
    """Limits of one task.

    Attributes:
        cpu_seconds: Processor time.
        wall_seconds: Time on the clock, without the time for which this program was stopped.
        memory_gib: Address space.
        free_gib: A task starts beside others only while as much memory is available.
    """

    cpu_seconds: int = 300
    wall_seconds: int = 1800
    memory_gib: float = 16
    free_gib: float = 4


@dataclass
class _Job:
    task: Any
    process: BaseProcess
    pipe: Connection
    seconds: float = 0
    record: dict | None = None


def run_tasks(
    tasks: Iterable[Any], work: Work, jobs: int, limits: Limits
) -> Iterator[tuple[Any, dict]]:
    """Runs tasks in parallel. The record of a task that dies or exceeds a limit has an ``error``.

    Args:
        tasks: Arguments for ``work``, in this order.
        work: Called in a forked process with a task and a function that takes an unfinished record,
            which counts if the process dies. It returns the record.
        jobs: Number of processes at a time.
        limits: Of one task.

    Yields:
        Each task with its record, in the order in which they end.
    """
    context = multiprocessing.get_context('fork')
    queue = iter(tasks)
    running: dict[Any, _Job] = {}
    waiting: list[Any] = []
    clock = time.monotonic()
    while True:
        while len(running) < jobs and not (running and _memory_is_short(limits)):
            waiting = waiting or [task for task in [next(queue, None)] if task is not None]
            if not waiting:
                break
            pipe, end = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(work, waiting[0], end, limits))
            process.start()
            end.close()
            running[pipe] = _Job(waiting.pop(), process, pipe)
        if not running:
            return
        for ready in wait(list(running), timeout=1):
            job = running[ready]
            try:
                job.record = job.pipe.recv()
            except EOFError:
                del running[ready]
                yield job.task, _finish(job, limits)
        elapsed, clock = time.monotonic() - clock, time.monotonic()
        for job in running.values():
            job.seconds += min(elapsed, 2)  # more than that, and this program was stopped
            if job.seconds > limits.wall_seconds:
                job.process.kill()


def _memory_is_short(limits: Limits) -> bool:
    return psutil.virtual_memory().available < limits.free_gib * 2**30


def _child(work: Work, task: Any, pipe: Connection, limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    size = int(limits.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    pipe.send(work(task, pipe.send))


def _finish(job: _Job, limits: Limits) -> dict:
    job.process.join()
    record, code = job.record or {}, job.process.exitcode
    if code == 0:
        return record
    if job.seconds > limits.wall_seconds:
        error = f'longer than {limits.wall_seconds} s'
    elif code == -signal.SIGXCPU:
        error = f'more than {limits.cpu_seconds} s of processor time'
    else:
        error = f'ended by {signal.Signals(-code).name}' if code and code < 0 else f'exit {code}'
    return {**record, 'error': error}
