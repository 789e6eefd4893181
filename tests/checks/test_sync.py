"""Random trials of synchronized SN among real gloo processes, against one with the union batch.

    bash tools/run_tests.sh tests/checks/test_sync.py --trials 1000 --record
    bash tools/run_tests.sh tests/checks/test_sync.py --trials 418 -k 'trial and 417'

Each trial draws from its seed 2 to 4 ranks, a small network, and for each step and rank its own
number of images (0 included), image size and RoIs; DDP's settings, activation checkpointing,
gradient accumulation, evaluation in between, groups of ranks, and a layer that was unpickled,
copied or loaded on one rank. Outputs, gradients and running statistics of every rank must be those
of one process that sees the union of the batches.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from ranks import RanksFailed, ranks_of

from sn_mm.output.markdown import markdown_table

from .record import machine, write_record
from .sync_trials.run import TOLERANCE, differences, judge, run_on_rank
from .sync_trials.trial import Trial, draw

TRIALS = 40
ENDS = ('agreed', 'differed', 'failed', 'hung')
POOLED = next(trial for trial in map(draw, range(99)) if all(k.sync is True for k in trial.layers))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'seed' in metafunc.fixturenames:
        trials = metafunc.config.getoption('trials')
        slow = [] if trials else [pytest.mark.slow]  # a number that was asked for is never left out
        seeds = [pytest.param(seed, marks=slow) for seed in range(trials or TRIALS)]
        metafunc.parametrize('seed', seeds)


@pytest.fixture(scope='module')
def ends(request: pytest.FixtureRequest) -> Iterator[dict[int, str]]:
    """How the trial of each seed ended, for the record."""
    ends: dict[int, str] = {}
    began = time.monotonic()
    yield ends
    if ends and request.config.getoption('record'):
        write_record('sync_trials.md', 'trials', summary(ends, time.monotonic() - began))


def summary(ends: dict[int, str], seconds: float) -> str:
    counts = Counter(ends.values())
    rows: dict[str, Counter[str]] = {}
    for seed, end in ends.items():
        for feature in draw(seed).features():
            rows.setdefault(feature, Counter())[end] += 1
    said = f'{len(ends):,} trials: ' + ', '.join(f'{counts[end]:,} {end}' for end in ENDS)
    table = markdown_table(
        ['trials with', *ENDS],
        [[feature, *(str(rows[feature][end]) for end in ENDS)] for feature in sorted(rows)],
    )
    bounds = ' and '.join(f'{bound:g} for {dtype}' for dtype, bound in TOLERANCE.items())
    others = ', '.join(f'{seed} ({end})' for seed, end in ends.items() if end != 'agreed')
    return (
        f'**{said}.** {machine()}, {seconds / 60:.0f} minutes.\n\n'
        f'Equal means within {bounds}, relative to the largest value of a tensor. '
        f'Seeds that did not agree: {others or "none"}.\n\n{table}'
    )


def test_a_trial_agrees_with_one_process_of_the_union_batch(
    seed: int, ends: dict[int, str]
) -> None:
    trial = draw(seed)
    print(trial)
    ends[seed] = 'failed'
    try:
        found = ranks_of(trial.ranks).run(run_on_rank, trial, limit=45)
    except RanksFailed as failed:
        ends[seed] = 'hung' if failed.hung else 'failed'
        pytest.fail(str(failed), pytrace=False)
    lines = differences(trial, found, judge(trial))
    ends[seed] = 'differed' if lines else 'agreed'
    assert not lines, '\n'.join(lines)


def test_the_usual_trials_meet_every_difficulty_twice() -> None:
    counts = Counter(feature for seed in range(TRIALS) for feature in draw(seed).features())
    assert set(counts) == {feature for seed in range(1000) for feature in draw(seed).features()}
    assert len(counts) == 24 and min(counts.values()) >= 2, counts


def run_each_alone(rank: int, trial: Trial) -> dict[str, np.ndarray]:
    layers = tuple(replace(layer, sync=False) for layer in trial.layers)
    return run_on_rank(rank, replace(trial, layers=layers))


@pytest.mark.slow
def test_statistics_that_are_not_pooled_are_seen() -> None:
    found = ranks_of(POOLED.ranks).run(run_each_alone, POOLED)
    assert any('output' in line for line in differences(POOLED, found, judge(POOLED)))


@pytest.mark.parametrize('change', [lambda a: a + 0.01, lambda a: a * np.nan], ids=['off', 'NaN'])
def test_one_wrong_number_is_seen(change) -> None:
    expected, found = judge(POOLED), judge(POOLED)
    assert not differences(POOLED, found, expected)
    name = next(name for name in found[1] if name.endswith('running_var'))
    found[1][name] = change(found[1][name])
    (line,) = differences(POOLED, found, expected)
    assert line.startswith(f'rank 1, {name}: off by')
