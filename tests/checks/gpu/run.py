"""Checks SN on a GPU and measures it: tests, layers, launches, training steps, nccl, and bounds.

    bash tools/check_gpu.sh --out results

needs torch, triton and pytest, and no network. Where no GPU is visible the same steps run on the
CPU at small sizes, with one file of tests. Each step has a process and a time limit of its own, so
that one that crashes or hangs leaves the others alone. Writes report.md, report.json, the steps'
logs and, where matplotlib is installed, the figure. Ends with 1 if a test fails or a step does not
come to its end; a bound that is not held is shown and is no failure.
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

from .bounds import mark_bounds
from .processes import Result, run_step, run_tests, step_command
from .report import draw, make_json, make_report

SECONDS = 530
"""The most that all steps take together: the whole command stays under 9 minutes."""


class Step(NamedTuple):
    """A module of this package, or pytest where ``backend`` is given; seconds that it may take."""

    name: str
    limit: float
    backend: str | None = None


MACHINE = Step('machine', 60)
# Tests side by side: nothing in them is timed.
TESTS = [Step('tests', 220, ''), Step('tests with SN_MM_BACKEND=aten', 220, 'aten')]
# The one that may need most time, as it compiles, comes last.
MEASUREMENTS = [
    Step('nccl', 60),
    Step('launches', 60),
    Step('host_time', 40),
    Step('layers', 180),
    Step('training', 90),
    Step('compiled', 240),
]
OPTIONS = ('-m', 'gpu and not slow')
PATHS = ('tests/test_layer.py', 'tests/test_functional.py', 'tests/test_ops')
QUICK_PATHS = PATHS[1:2]  # without a GPU: whoever runs the tests has run them all on the CPU
# Tests of the kernels call them, whatever backend is forced: once is enough.
WITHOUT_KERNELS = '--ignore=tests/test_ops/test_triton.py'


def run_steps(out: Path, quick: bool, steps: Sequence[Step], deadline: float) -> list[Result]:
    """Runs ``steps`` side by side; each stops at its limit or at the deadline."""

    def run(step: Step) -> Result:
        name, limit, backend = step
        limit = round(min(limit, deadline - time.monotonic()))
        if limit < 1:
            return Result(name, 'failed', f'no time left of {SECONDS} s', 0, [])
        stem = out / 'steps' / name.replace(' ', '-').replace('=', '-')
        log = stem.with_suffix('.log')
        if backend is None:
            records = stem.with_suffix('.jsonl')
            result = run_step(name, step_command(name, records, quick), records, log, limit)
        else:
            paths = PATHS if torch.cuda.is_available() else QUICK_PATHS
            options = [*OPTIONS, *([WITHOUT_KERNELS] if backend else []), *paths]
            result = run_tests(name, options, backend, log, limit)
        reason = f': {result.reason}' if result.reason else ''
        print(f'{name}: {result.status}, {result.seconds:.0f} s{reason}', flush=True)
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
        parser.exit(2, f'check_gpu: error: --out {args.out} cannot be made: {error.strerror}\n')
    args.out = args.out.resolve()
    return args


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
