"""tools/simulate_sync.py: arithmetic against counts by hand, and real gloo processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import simulate_sync
from benchmark import sync_measure, sync_model
from benchmark.sync_model import Collective, Cost, recursive_doubling, ring, tree
from sn_mm.benchmark.resnet import ResNet

ROOT = Path(__file__).parents[2]
REDUCE = Collective('all_reduce', 10, 8)  # 80 bytes
GATHER = Collective('all_gather', 10, 4)  # 40 bytes


def test_the_first_layers_are_those_of_resnet_50():
    norms = [m for m in ResNet().modules() if isinstance(m, nn.BatchNorm2d)]
    channels = sync_model.mask_rcnn_channels()
    assert channels[:53] == [norm.num_features for norm in norms]
    assert len(channels) == 69 and sum(channels) == 26_560 + 16 * 256


def test_bytes_of_a_layer_of_64_channels():
    forward, backward = sync_model.of_sn(64)
    assert [forward.result(r) for r in (2, 512)] == [129 * 8] * 2
    assert [backward.result(r) for r in (2, 512)] == [128 * 4] * 2
    forward, backward = sync_model.of_sync_batch_norm(64)
    assert [forward.result(r) for r in (2, 512)] == [2 * 129 * 4, 512 * 129 * 4]
    assert [backward.result(r) for r in (2, 512)] == [128 * 4] * 2


@pytest.mark.parametrize(
    ('algorithm', 'collective', 'ranks', 'cost'),
    [
        (ring, REDUCE, 2, Cost(2, 80)),
        (ring, REDUCE, 4, Cost(6, 120)),
        (ring, REDUCE, 8, Cost(14, 140)),
        (ring, GATHER, 4, Cost(3, 120)),
        (ring, GATHER, 8, Cost(7, 280)),
        (recursive_doubling, REDUCE, 8, Cost(3, 240)),
        (recursive_doubling, GATHER, 8, Cost(3, 40 + 80 + 160)),
        (tree, REDUCE, 8, Cost(6, 6 * 80)),
        # To the root 1, 2 and 4 parts, all eight parts three times back.
        (tree, GATHER, 8, Cost(6, 40 + 80 + 160 + 3 * 320)),
    ],
)
def test_costs_counted_by_hand(algorithm, collective, ranks, cost):
    assert algorithm(collective, ranks) == cost


@pytest.mark.parametrize('ranks', [2, 3, 4, 7])
def test_a_ring_that_is_played_through_costs_what_the_formula_says(ranks):
    """Ranks pass parts of their numbers on, twice round: all end with the sum."""
    numbers = [[float(rank * ranks + part) for part in range(ranks)] for rank in range(ranks)]
    total = [sum(column) for column in zip(*numbers)]
    rounds = received = 0
    for lap in range(2):
        for shift in range(ranks - 1):
            parts = [(rank - shift + lap) % ranks for rank in range(ranks)]
            sent = [numbers[rank][part] for rank, part in enumerate(parts)]
            for rank, part in enumerate(parts):
                after = (rank + 1) % ranks
                kept = numbers[after][part] if lap == 0 else 0
                numbers[after][part] = kept + sent[rank]
            rounds, received = rounds + 1, received + 1
    assert numbers == [total] * ranks
    assert ring(Collective('all_reduce', ranks, 1), ranks) == Cost(rounds, received)


@pytest.mark.parametrize('ranks', [2, 4, 8])
def test_recursive_doubling_that_is_played_through_costs_what_the_formula_says(ranks):
    sums, sets = list(range(ranks)), [{rank} for rank in range(ranks)]
    rounds = of_reduce = of_gather = 0
    while 2**rounds < ranks:
        others = [rank ^ 2**rounds for rank in range(ranks)]
        of_gather += len(sets[0])
        sums = [sums[rank] + sums[other] for rank, other in enumerate(others)]
        sets = [sets[rank] | sets[other] for rank, other in enumerate(others)]
        rounds, of_reduce = rounds + 1, of_reduce + 1
    assert sums == [sum(range(ranks))] * ranks and sets == [set(range(ranks))] * ranks
    assert recursive_doubling(Collective('all_reduce', 1, 1), ranks) == Cost(rounds, of_reduce)
    assert recursive_doubling(Collective('all_gather', 1, 1), ranks) == Cost(rounds, of_gather)


def test_a_training_step_adds_up_its_layers():
    record = sync_model.simulate([1, 2], ranks=4, alpha=1.0, bandwidth=2.0)
    sn, batch = record['SN'], record['SyncBatchNorm']
    assert sn['forward_bytes'] == (3 + 5) * 8 and batch['forward_bytes'] == 4 * (3 + 5) * 4
    assert sn['backward_bytes'] == batch['backward_bytes'] == (2 + 4) * 4
    assert sn['received_bytes']['ring'] == 1.5 * (64 + 24)
    assert batch['received_bytes']['ring'] == 3 * 32 + 1.5 * 24
    assert sn['seconds']['ring'] == 4 * 6 + 1.5 * 88 / 2
    assert batch['seconds']['ring'] == 2 * 3 + 2 * 6 + (96 + 36) / 2
    assert sn['seconds']['recursive doubling'] == 4 * 2 + 2 * 88 / 2


# --- real processes -------------------------------------------------------------------------------


def test_measured_tensors_have_the_bytes_of_the_model():
    channels = [3, 8]
    measured = sync_measure.measure(channels, ranks=2, repeats=2, limit=60)
    model = sync_model.simulate(channels, ranks=2)
    for scheme in sync_model.SCHEMES:
        for name in ('forward', 'backward'):
            assert measured[scheme][f'{name}_bytes'] == model[scheme][f'{name}_bytes']
            assert measured[scheme][f'{name}_seconds'] > 0
        assert measured[scheme]['model_seconds'] > 0
    assert measured['alpha'] > 0 and measured['bandwidth'] > 0


def run_layer(rank: int, folder: str) -> None:
    from sn_mm import SwitchNorm2d, distributed

    distributed._FEW_RANKS = 0  # as on accelerators

    store = f'file://{folder}/store'
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
    layer, given = SwitchNorm2d(5), []
    all_reduce = dist.all_reduce

    def recorded(tensor, *args, **kwargs):
        given.append((tensor.numel(), tensor.element_size()))
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = recorded
    layer(torch.randn(2, 5, 3, 3, requires_grad=True)).sum().backward()
    Path(folder, f'{rank}.json').write_text(json.dumps(given))
    dist.barrier()
    dist.destroy_process_group()


def test_a_layer_on_two_ranks_gives_what_the_model_says(tmp_path):
    mp.spawn(run_layer, (str(tmp_path),), nprocs=2)
    expected = [[c.numbers, c.size] for c in sync_model.of_sn(5)]
    for rank in range(2):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == expected


def test_a_rank_that_dies_ends_the_measurement():
    with pytest.raises(RuntimeError, match='a rank of the measurement'):
        sync_measure.measure(['no number'], ranks=2, repeats=1, limit=30)


# --- the command ----------------------------------------------------------------------------------


def run_command(*options: str) -> str:
    command = [sys.executable, ROOT / 'tools' / 'simulate_sync.py', *options]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_prints_json():
    written = json.loads(
        run_command('--json', '--ranks', '512', '--alpha', '2', '--bandwidth', '5')
    )
    assert written['layers'] == 69 and written['measured'] is None
    assert np.isclose(written['alpha'], 2e-6) and written['bandwidth'] == 5e9
    (record,) = written['simulated']
    numbers = 2 * 30_656 + 69
    assert record['SN']['forward_bytes'] == 8 * numbers
    assert record['SyncBatchNorm']['forward_bytes'] == 512 * 4 * numbers


@pytest.mark.slow
def test_command_measures_and_prints_tables():
    shown = run_command('--measure', '2', '--repeats', '1')
    rows = [[cell.strip() for cell in line.split('│')] for line in shown.split('\n')]
    ranks = [row[1] for row in rows if len(row) > 2]
    assert ranks[:7] == [str(r) for r in sync_model.RANKS] and ranks[7:] == ['SN', 'SyncBatchNorm']
    assert ['0.49', '0.25'] in [row[2:4] for row in rows]
    assert 'Measured: 2 gloo processes' in shown and torch.__version__ in shown


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--ranks', '8', '1'], '--ranks must be at least 2, got 1'),
        (['--alpha', '-1'], '--alpha must be at least 0, got -1'),
        (['--alpha', 'nan'], '--alpha must be at least 0, got nan'),
        (['--bandwidth', '0'], '--bandwidth must be above 0, got 0'),
        (['--repeats', '0'], '--repeats must be at least 1, got 0'),
        (['--measure', '9'], '--measure must be 2 to 8 processes, got 9'),
    ],
)
def test_wrong_input_is_one_line(monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, 'argv', ['simulate_sync.py', *options])
    with pytest.raises(SystemExit) as exited:
        simulate_sync.main()
    assert exited.value.code == 2
    assert capsys.readouterr().err == f'simulate_sync.py: error: {message}\n'
