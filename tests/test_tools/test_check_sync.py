"""tools/check_sync.py: real trials, and that it sees ranks that hang, die or compute otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
from torch import nn

import check_sync
from sn_mm import SwitchNorm2d, layer, name_layers
from sync_trials.processes import Ranks
from sync_trials.run import differences, judge, run_on_rank
from sync_trials.trial import draw

ROOT = Path(__file__).parents[2]
POOLED = next(seed for seed in range(99) if all(k.sync is True for k in draw(seed).layers))


@pytest.fixture(scope='module')
def two_ranks():
    ranks = Ranks(2, limit=4)
    yield ranks
    ranks.stop()


def number(rank: int) -> int:
    return rank


def sleep_on_one(rank: int) -> None:
    time.sleep(60 * rank)


def raise_on_one(rank: int) -> None:
    if rank:
        raise RuntimeError('it broke')


def die_on_one(rank: int) -> None:
    if rank:
        os._exit(1)


def die_before_a_layer(rank: int) -> None:
    net = nn.ModuleDict({'conv': nn.Conv2d(3, 4, 1), 'bn1': SwitchNorm2d(4)})
    name_layers(net)['bn1'](net['conv'](torch.randn(2, 3, 4, 4))).sum().backward()
    if rank:
        os._exit(1)
    net['bn1'](torch.randn(2, 4, 4, 4))


def run_each_alone(rank: int, seed: int) -> dict:
    with mock.patch.object(layer, 'resolve_group', lambda sync, process_group: None):
        return run_on_rank(rank, seed)


@pytest.mark.slow
def test_forty_trials_agree(tmp_path):
    command = [sys.executable, ROOT / 'tools/check_sync.py', '--trials', '40', '--out', 'record.md']
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    run = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    said = '40 trials: 40 agreed, 0 differed, 0 failed, 0 hung'
    assert said in run.stdout
    record = (tmp_path / 'record.md').read_text()
    assert said in record and 'python tools/check_sync.py --trials 40 --out record.md' in record


def test_the_first_forty_trials_meet_every_difficulty_twice():
    counts = Counter(feature for seed in range(40) for feature in draw(seed).features())
    assert set(counts) == {feature for seed in range(1000) for feature in draw(seed).features()}
    assert len(counts) == 24 and min(counts.values()) >= 2, counts


@pytest.mark.slow
def test_ranks_that_hang_raise_or_die_are_counted_and_replaced(two_ranks):
    for work, hung, errors in [
        (sleep_on_one, True, {}),
        (raise_on_one, False, {1: 'it broke'}),
        (die_on_one, False, {1: 'died'}),
    ]:
        assert two_ranks.run(number).results == [0, 1]
        before = [process.pid for process in two_ranks._processes]
        outcome = two_ranks.run(work)
        assert outcome.hung is hung and outcome.errors.keys() == errors.keys()
        assert all(errors[rank] in outcome.errors[rank] for rank in errors)
        assert not any(map(psutil.pid_exists, before))


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_with_the_name_of_a_layer(two_ranks):
    outcome = two_ranks.run(die_before_a_layer)
    assert not outcome.hung and outcome.errors[1] == 'died'
    last = outcome.errors[0].splitlines()[-1]
    assert 'bn1 (num_features=4) waited forward for the ranks [0, 1] on rank 0, in vain' in last


@pytest.mark.slow
def test_statistics_that_are_not_pooled_are_seen():
    trial = draw(POOLED)
    ranks = Ranks(trial.ranks, limit=60)
    try:
        outcome = ranks.run(run_each_alone, POOLED)
    finally:
        ranks.stop()
    assert not outcome.hung and not outcome.errors
    assert any('output' in line for line in differences(trial, outcome.results, judge(POOLED)))


def test_one_wrong_number_is_seen():
    trial, expected, found = draw(POOLED), judge(POOLED), judge(POOLED)
    assert not differences(trial, found, expected)
    for change in (lambda a: a + 0.01, lambda a: a * np.nan):
        wrong = [dict(of_rank) for of_rank in found]
        name = next(name for name in wrong[1] if name.endswith('running_var'))
        wrong[1][name] = change(wrong[1][name])
        (line,) = differences(trial, wrong, expected)
        assert line.startswith(f'rank 1, {name}: off by')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--trials', '0'], '--trials must be an int >= 1, got 0'),
        (['--seed', '-1'], '--seed must be at least 0, got -1'),
        (['--limit', '0'], '--limit must be above 0, got 0'),
        (['--out', 'none/record.md'], "--out: no folder 'none'"),
    ],
)
def test_bad_arguments_end_in_one_line(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, 'argv', ['check_sync.py', *words])
    with pytest.raises(SystemExit) as end:
        check_sync.main()
    assert end.value.code == 2 and said in capsys.readouterr().err
