"""Random trials of synchronised SN among real gloo processes, against one with the union batch.

    python tools/check_sync.py --trials 1000
    python tools/check_sync.py --trials 1000 --out docs/sync_trials.md
    python tools/check_sync.py --seed 417      # that one trial again, with all that it found

Each trial draws from its seed 2 to 4 ranks, a small network, and for each step and rank its own
number of images (0 included), image size and RoIs; DDP's settings, activation checkpointing,
gradient accumulation, evaluation in between, groups of ranks, and a layer that was unpickled,
copied or loaded on one rank. Outputs, gradients and running statistics of every rank must be those
of one process that sees the union of the batches.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / 'tests'))  # reference.py, the judge's equations
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')  # DDP warns of each setting that has no use

import torch
import torch.distributed as dist
from rich import print as rich_print
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sn_mm.cli.errors import report_input_errors
from sn_mm.errors import InputError, check_positive_int
from sync_trials.processes import Ranks
from sync_trials.record import Verdict, summarise, write_record
from sync_trials.run import differences, judge, run_on_rank
from sync_trials.trial import draw


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--trials', type=int, default=100,
                        help='seeds 0 to N - 1 (%(default)s)', metavar='N')  # fmt: skip
    parser.add_argument('--seed', type=int, help='only the trial of this seed')
    parser.add_argument('--limit', type=float, default=60,
                        help='seconds after which a trial has hung (%(default)g)')  # fmt: skip
    parser.add_argument('--out', type=Path, help='write the record to this file')
    args = parser.parse_args()
    check_positive_int('--trials', args.trials)
    if args.seed is not None and args.seed < 0:
        raise InputError(f'--seed must be at least 0, got {args.seed}')
    if not args.limit > 0:
        raise InputError(f'--limit must be above 0, got {args.limit:g}')
    if args.out and not args.out.parent.is_dir():
        raise InputError(f'--out: no folder {str(args.out.parent)!r}')
    if not (dist.is_available() and dist.is_gloo_available()):
        raise InputError('the trials need gloo, which this build of torch does not have')
    return args


def run_trial(seed: int, ranks: Ranks) -> Verdict:
    """One trial on the ranks and by the judge."""
    outcome = ranks.run(run_on_rank, seed)
    if outcome.hung:
        return Verdict(seed, 'hung', ())
    if outcome.errors:
        said = (f'rank {rank}: {text}' for rank, text in outcome.errors.items())
        return Verdict(seed, 'failed', tuple(said))
    lines = differences(draw(seed), outcome.results, judge(seed))
    return Verdict(seed, 'differed' if lines else 'agreed', tuple(lines))


@report_input_errors
def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    seeds = range(args.trials) if args.seed is None else [args.seed]
    if args.seed is not None:
        rich_print(dataclasses.asdict(draw(args.seed)))
    pools: dict[int, Ranks] = {}
    verdicts: list[Verdict] = []
    began = time.monotonic()
    bar = Progress(
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )
    try:
        with bar:
            task = bar.add_task('trials', total=len(seeds))
            for seed in seeds:
                size = draw(seed).ranks
                ranks = pools.setdefault(size, Ranks(size, args.limit))
                verdicts.append(run_trial(seed, ranks))
                if verdicts[-1].ended != 'agreed':
                    bar.print(f'seed {seed} {verdicts[-1].ended}', *verdicts[-1].lines,
                              sep='\n  ', markup=False)  # fmt: skip
                bar.advance(task)
    finally:
        for ranks in pools.values():
            ranks.stop()
    print(summarise(verdicts))
    if args.out:
        write_record(args.out, verdicts, sys.argv[1:], time.monotonic() - began)
    if any(verdict.ended != 'agreed' for verdict in verdicts):
        sys.exit(1)


if __name__ == '__main__':
    main()
