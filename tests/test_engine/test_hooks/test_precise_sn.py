"""What is validated and saved has the batch average of its weights; nothing else differs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from toy_training import Model, build_runner, by_iteration, loader

from sn_mm.engine.hooks import PreciseSNHook
from sn_mm.engine.hooks import precise_sn as module
from sn_mm.engine.training_set import measure_on_training_set
from sn_mm.errors import InputError

STATISTICS = ('norm.running_mean', 'norm.running_var')
ITERS = 4


def train(work_dir: Path, *hooks: Any, **changes: Any) -> Runner:
    runner = build_runner(work_dir, *hooks, **changes)
    runner.train()
    return runner


def saved(work_dir: Path, name: str) -> dict:
    return torch.load(work_dir / name, weights_only=False)


def expected(weights: dict, bn: bool = False) -> dict[str, torch.Tensor]:
    """The batch average of a checkpoint's weights."""
    model = Model()
    model.load_state_dict(weights)
    return measure_on_training_set(model, loader(), ITERS, bn=bn)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list:
    """The mini-batches of each measurement, as long as the test runs."""
    calls: list = []

    def measure(model: nn.Module, dataloader: dict, num_iters: int, *args: Any) -> dict:
        calls.append(num_iters)
        return measure_on_training_set(model, dataloader, num_iters, *args)

    monkeypatch.setattr(module, 'measure_on_training_set', measure)
    return calls


@pytest.mark.parametrize('kind', ['PreciseSNHook', 'sn_mm.PreciseSNHook'])
def test_found_by_name(kind: str) -> None:
    assert type(HOOKS.build(dict(type=kind, num_iters=7))) is PreciseSNHook


def test_each_checkpoint_has_the_batch_average_of_its_own_weights(
    tmp_path: Path, measurements: list
) -> None:
    runner = train(tmp_path, PreciseSNHook(ITERS))
    assert measurements == [ITERS, ITERS]
    validated = runner.model.evaluated
    for epoch in (1, 2):
        weights = saved(tmp_path, f'epoch_{epoch}.pth')['state_dict']
        for key, value in expected(weights).items():
            assert torch.equal(weights[key], value)
        for mean in validated[3 * (epoch - 1) : 3 * epoch]:
            assert torch.equal(mean, weights['norm.running_mean'])


@pytest.mark.parametrize('bn', [False, True])
def test_training_goes_as_without(tmp_path: Path, bn: bool) -> None:
    """Weights, optimizer, order of data, random states: equal to the last bit."""
    ends = []
    for name, hooks in (('plain', ()), ('precise', (PreciseSNHook(ITERS, bn=bn),))):
        runner = train(tmp_path / name, *hooks)
        state = {**runner.model.state_dict()}
        optimizer = runner.optim_wrapper.state_dict()
        randomness = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        modes = [m.training for m in runner.model.modules()]
        grads = [p.grad for p in runner.model.parameters()]
        ends.append((state, optimizer, randomness, modes, grads))
    (plain, *unchanged), (precise, *same) = ends
    torch.testing.assert_close(unchanged, same, rtol=0, atol=0)
    replaced = {*STATISTICS, *(['bn.running_mean', 'bn.running_var'] if bn else [])}
    for key, value in plain.items():
        assert torch.equal(value, precise[key]) == (key not in replaced), key


def test_random_states_and_loaders_are_left_alone_within_an_epoch(tmp_path: Path) -> None:
    """Iterations take their data from one long iterator, which goes on where it was."""
    changes = by_iteration(val_interval=2)
    plain = train(tmp_path / 'a', **changes)
    precise = train(tmp_path / 'b', PreciseSNHook(ITERS, interval=1, by_epoch=False), **changes)
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, precise.model.state_dict()[key]) == (key not in STATISTICS)


@pytest.mark.parametrize(
    ('hook', 'count'),
    [
        (dict(interval=1, by_epoch=False), 6),
        (dict(interval=4, by_epoch=False), 3),  # 4, before validation at 5, at the end
        (dict(interval=100, by_epoch=False), 2),
        (dict(interval=100), 2),
        ({}, 4),  # as the CheckpointHook: 2, 4, 6, and before validation at 5
    ],
)
def test_intervals_add_to_validation_and_the_end(
    tmp_path: Path, measurements: list, hook: dict, count: int
) -> None:
    changes = by_iteration(val_begin=5, val_interval=5)
    train(tmp_path, PreciseSNHook(ITERS, **hook), **changes)
    assert len(measurements) == count


def test_with_ema_the_averaged_weights_get_their_statistics(tmp_path: Path) -> None:
    runner = train(tmp_path, PreciseSNHook(ITERS), dict(type='EMAHook', momentum=0.5))
    checkpoint = saved(tmp_path, 'epoch_2.pth')
    averaged, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    assert not torch.equal(averaged['conv.weight'], trained['module.conv.weight'])
    for key, value in expected(averaged).items():
        assert torch.equal(averaged[key], value)
    assert all(
        torch.equal(mean, averaged['norm.running_mean']) for mean in runner.model.evaluated[3:]
    )


def test_validation_alone_uses_the_checkpoints_statistics(
    tmp_path: Path, measurements: list
) -> None:
    build_runner(tmp_path, PreciseSNHook(ITERS)).val()
    assert measurements == []


@pytest.mark.parametrize('name', ['num_iters', 'interval'])
@pytest.mark.parametrize('value', [0, -3, 2.5, True])
def test_numbers_must_be_positive(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f'{name} must be an int >= 1, got {value}'):
        PreciseSNHook(**{name: value})


def test_bad_trainings_are_refused_before_they_start(tmp_path: Path) -> None:
    model = Model()
    model.norm = nn.InstanceNorm2d(4)
    with pytest.raises(InputError, match='no SN layer with running statistics'):
        build_runner(tmp_path / 'a', PreciseSNHook(), model=model).train()
    built = Runner.build_dataloader(loader())
    runner = build_runner(tmp_path / 'b', PreciseSNHook(), train_dataloader=built)
    with pytest.raises(InputError, match='train_dataloader must be a config'):
        runner.train()
