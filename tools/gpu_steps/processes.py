"""Steps in processes of their own, each with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PATHS = (str(ROOT), str(ROOT / 'tools'))


class Result(NamedTuple):
    """How a step ended.

    Attributes:
        name: The step's.
        status: 'done', 'failed' or 'not measured'.
        reason: Why it failed or was not measured, in one line; else ''.
        seconds: How long it took.
        records: Those that it wrote until it ended.
    """

    name: str
    status: str
    reason: str
    seconds: float
    records: list[dict[str, Any]]


def run_step(
    name: str,
    command: Sequence[str | Path],
    records: Path,
    log: Path,
    limit: float,
    environment: dict[str, str] | None = None,
) -> Result:
    """Runs ``command``, which writes ``records`` as :mod:`gpu_steps.step` does, to its end.

    Args:
        name: For the result.
        command: Program and arguments.
        records: The file that it writes.
        log: Where its output goes.
        limit: Seconds after which it is stopped, with all processes that it started.
        environment: Variables beside this process's own.
    """
    paths = os.pathsep.join([*PATHS, *filter(None, [os.environ.get('PYTHONPATH')])])
    # Without lines of the profiler between those of the step.
    env = {**os.environ, 'KINETO_LOG_LEVEL': '99', 'PYTHONPATH': paths, **(environment or {})}
    began = time.monotonic()
    with log.open('w', encoding='utf-8') as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
            stopped = False
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            _stop(process)
    lines = _read(records)
    end = lines.pop() if lines and 'end' in lines[-1] else None
    if stopped:
        status, reason = 'failed', f'stopped after {limit:g} s'
    elif end is None:
        status, reason = 'failed', _why(process.returncode, log)
    else:
        status, reason = end['end'], end.get('reason', '')
    return Result(name, status, reason, time.monotonic() - began, lines)


def step_command(step: str, records: Path, quick: bool) -> list[str | Path]:
    command = [sys.executable, '-m', 'gpu_steps.step', step, records]
    return [*command, '--quick'] if quick else command


def _stop(process: subprocess.Popen) -> None:
    """Ends the step's process group: also the processes that an ended step has left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _read(records: Path) -> list[dict[str, Any]]:
    if not records.exists():
        return []
    complete = records.read_text(encoding='utf-8').split('\n')[:-1]  # the last may be cut short
    return [json.loads(line) for line in complete]


def _why(code: int, log: Path) -> str:
    if code < 0:
        ended = f'killed by {signal.Signals(-code).name}'
    else:
        ended = f'exit status {code}'
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').split('\n')]
    said = [line for line in lines if line]
    return f'{ended}: {said[-1][:200]}' if said else ended
