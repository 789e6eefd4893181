"""Checks SN on a GPU and measures it: tests, layers, launches, training steps, nccl, and bounds.

    bash tools/check_gpu.sh --out results

needs torch, triton and pytest, and no network. Where no GPU is visible the same steps run on the
CPU at small sizes. Each step has a process and a time limit of its own, so that one that crashes or
hangs leaves the others alone. Writes report.md, report.json, the steps' logs and, where matplotlib
is installed, the figure. Ends with 1 if a test fails or a step does not come to its end; a bound
that is not held is shown and is no failure.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from gpu_steps.bounds import mark_bounds
from gpu_steps.processes import Result, run_step, step_command
from gpu_steps.report import draw, make_json, make_report
from sn_mm.cli.errors import report_input_errors
from sn_mm.errors import InputError

SECONDS = 530
"""The most that all steps take together: the whole command stays under 9 minutes."""


class Step(NamedTuple):
    """Module of ``gpu_steps``, seconds it may take, and environment variables that it needs."""

    name: str
    module: str
    limit: float
    environment: dict[str, str] = {}


# Tests side by side: nothing in them is timed.
TESTS = [
    Step('tests', 'tests', 220, {'SN_MM_BACKEND': ''}),
    Step('tests with SN_MM_BACKEND=aten', 'tests', 220, {'SN_MM_BACKEND': 'aten'}),
]
# The one that may need most time, as it compiles, comes last.
MEASUREMENTS = [
    Step('nccl', 'nccl', 60),
    Step('launches', 'launches', 60),
    Step('host_time', 'host_time', 40),
    Step('layers', 'layers', 180),
    Step('training', 'training', 90),
    Step('compiled', 'compiled', 240),
]
MACHINE = Step('machine', 'machine', 60)


def run_steps(out: Path, quick: bool, steps: Sequence[Step], deadline: float) -> list[Result]:
    """Runs ``steps`` side by side; each stops at its limit or at the deadline."""

    def run(step: Step) -> Result:
        left = min(step.limit, deadline - time.monotonic())
        if left < 1:
            return Result(step.name, 'failed', f'no time left of {SECONDS} s', 0, [])
        stem = step.name.replace(' ', '-').replace('=', '-')
        records, log = (out / 'steps' / f'{stem}.{suffix}' for suffix in ('jsonl', 'log'))
        records.unlink(missing_ok=True)
        command = step_command(step.module, records, quick)
        result = run_step(step.name, command, records, log, round(left), step.environment)
        reason = f': {result.reason}' if result.reason else ''
        print(f'{step.name}: {result.status}, {result.seconds:.0f} s{reason}', flush=True)
        return result

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(run, steps))


def parse_args() -> Namespace:
    parser = ArgumentParser(prog='check_gpu', description=__doc__.split('\n')[0])
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/check_gpu'), metavar='DIR',
        help='where the report goes (%(default)s)',
    )  # fmt: skip
    parser.add_argument(
        '--quick', action='store_true', help='small sizes; always so where no GPU is visible'
    )
    args = parser.parse_args()
    try:
        (args.out / 'steps').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'--out {args.out} cannot be made: {error.strerror}') from None
    args.out = args.out.resolve()
    return args


@report_input_errors
def main() -> None:
    args = parse_args()
    on_gpu = torch.cuda.is_available()
    quick = args.quick or not on_gpu
    deadline = time.monotonic() + SECONDS
    results = []
    for steps in ([MACHINE], TESTS, *([step] for step in MEASUREMENTS)):
        results += run_steps(args.out, quick, steps, deadline)
    machine = next(iter(results[0].records), {})
    marks = mark_bounds(results, on_gpu)
    report = make_report(machine, results, marks, quick)
    (args.out / 'report.md').write_text(report, encoding='utf-8')
    (args.out / 'report.json').write_text(make_json(machine, results, marks, quick), 'utf-8')
    print(f'\n{report}')
    print(draw(machine, results, args.out))
    print(f'Written: {args.out}/report.md, report.json, and what the steps said in steps/')
    sys.exit(any(result.status == 'failed' for result in results))


if __name__ == '__main__':
    main()
