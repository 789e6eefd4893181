"""Steps in processes of their own, each with a time limit.

Not by ``tests/ranks.py`` or ``concurrent.futures``: a step is a command with a log of its own, and
is stopped with all processes that it has started.
"""

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

from ..junit import read_report

ROOT = Path(__file__).parents[3]
PATHS = (str(ROOT), str(ROOT / 'tests'))
STOPPED = 'stopped after'


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
    name: str, command: Sequence[str | Path], records: Path, log: Path, limit: float
) -> Result:
    """Runs a ``command`` that writes ``records`` as :mod:`checks.gpu.step` does.

    Args:
        name: For the result.
        command: Program and arguments.
        records: The file that it writes.
        log: Where its output goes.
        limit: Seconds after which it is stopped, with all processes that it started.
    """
    records.unlink(missing_ok=True)
    seconds, fault = _run(command, log, limit)
    lines = _read(records)
    end = lines.pop() if lines and 'end' in lines[-1] else None
    if end is None or fault.startswith(STOPPED):
        end = {'end': 'failed', 'reason': fault or 'ended without a last record'}
    return Result(name, end['end'], end.get('reason', ''), seconds, lines)


def run_tests(name: str, options: Sequence[str], backend: str, log: Path, limit: float) -> Result:
    """Runs pytest on the tests of the device; its report lies beside ``log``.

    Args:
        name: For the result.
        options: Of pytest.
        backend: The value of ``SN_MM_BACKEND``, '' for the default.
        log, limit: As in :func:`run_step`.
    """
    file = log.with_suffix('.xml')
    file.unlink(missing_ok=True)
    pytest = ('-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={file}')
    command = [sys.executable, *pytest, *options]
    seconds, fault = _run(command, log, limit, SN_MM_BACKEND=backend)
    if not file.exists():
        return Result(name, 'failed', fault, seconds, [])
    report = read_report(file)
    failed, skipped = len(report.failed), sum(report.skipped.values())
    if failed:
        total = report.passed + failed + skipped
        fault = f'{failed} of {total} tests fail, the first: {report.failed[0]}'
    record = {
        'backend': backend or 'default',
        'passed': report.passed,
        'failed': failed,
        'skipped': skipped,
        'failures': report.failed,
        'not_run': dict(report.skipped),
    }
    return Result(name, 'failed' if fault else 'done', fault, seconds, [record])


def step_command(step: str, records: Path, quick: bool) -> list[str | Path]:
    command = [sys.executable, '-m', 'checks.gpu.step', step, records]
    return [*command, '--quick'] if quick else command


def _run(
    command: Sequence[str | Path], log: Path, limit: float, **variables: str
) -> tuple[float, str]:
    """Seconds that a command took, and one line where it did not end with status 0."""
    paths = os.pathsep.join([*PATHS, *filter(None, [os.environ.get('PYTHONPATH')])])
    # Without lines of the profiler between those of the step.
    env = {**os.environ, 'KINETO_LOG_LEVEL': '99', 'PYTHONPATH': paths, **variables}
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
            fault = _why(process.returncode, log)
        except subprocess.TimeoutExpired:
            fault = f'{STOPPED} {limit:g} s'
        finally:
            _stop(process)
    return time.monotonic() - began, fault


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
    if not code:
        return ''
    ended = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit status {code}'
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').split('\n')]
    said = [line for line in lines if line]
    return f'{ended}: {said[-1][:200]}' if said else ended
