"""Importance reaches the visualizer's backends, at the steps that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from toy_training import Model, build_runner

from sn_mm.analysis import importance
from sn_mm.engine.hooks import SwitchWeightsHook
from sn_mm.errors import InputError


def logged(work_dir: Path) -> dict[int, dict[str, float]]:
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line.pop('step'): line for line in lines if any('sn_' in key for key in line)}


def train(work_dir: Path, *hooks: SwitchWeightsHook | dict) -> Runner:
    runner = build_runner(work_dir, *hooks)
    nn.init.normal_(runner.model.norm.mean_weight)
    runner.train()
    return runner


@pytest.mark.parametrize('kind', ['SwitchWeightsHook', 'sn_mm.SwitchWeightsHook'])
def test_found_by_name(kind: str) -> None:
    assert type(HOOKS.build(dict(type=kind, interval=7))) is SwitchWeightsHook


def test_logs_before_training_every_n_iterations_and_at_the_end(tmp_path: Path) -> None:
    runner = train(tmp_path, dict(type='SwitchWeightsHook', interval=4))
    log = logged(tmp_path)
    assert list(log) == [0, 4, 6]
    assert log[0] != log[4] != log[6]
    assert log[6] == importance.to_scalars(importance.from_model(runner.model), 'layer')
    assert log[6]['sn_layer/var/norm/bn'] == runner.model.norm.importance()['var']['bn']


def test_averages_by_component(tmp_path: Path) -> None:
    train(tmp_path, SwitchWeightsHook(interval=100, by_component=True))
    log = logged(tmp_path)
    assert list(log) == [0, 6]
    assert {key.rsplit('/', 1)[0] for key in log[6]} == {
        'sn_component/mean/stem', 'sn_component/var/stem',
    }  # fmt: skip


def test_training_goes_as_without(tmp_path: Path) -> None:
    plain, with_hook = train(tmp_path / 'a'), train(tmp_path / 'b', SwitchWeightsHook(interval=1))
    assert len(logged(tmp_path / 'b')) == 7
    states = dict(plain.model.state_dict()), dict(with_hook.model.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_reach_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = dict(type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')])
    runner = build_runner(tmp_path, SwitchWeightsHook(interval=4), visualizer=backends)
    runner.train()
    (file,) = tmp_path.glob('*/vis_data/events.out.tfevents.*')
    events = EventAccumulator(str(file)).Reload()
    wanted = importance.to_scalars(importance.from_model(runner.model), 'layer')
    assert {tag for tag in events.Tags()['scalars'] if tag.startswith('sn_')} == set(wanted)
    for tag, value in wanted.items():
        logged = events.Scalars(tag)
        assert [event.step for event in logged] == [0, 4, 6]
        assert logged[-1].value == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize('interval', [0, -1, 1.5, True, None])
def test_interval_must_be_positive(interval: object) -> None:
    with pytest.raises(InputError, match=f'interval must be an int >= 1, got {interval}'):
        SwitchWeightsHook(interval=interval)


def test_a_model_without_sn_is_refused_before_training(tmp_path: Path) -> None:
    model = Model()
    model.norm = nn.BatchNorm2d(4)
    runner = build_runner(tmp_path, SwitchWeightsHook(), model=model)
    with pytest.raises(InputError, match='SwitchWeightsHook: the model has no SN layer'):
        runner.train()
    assert runner.iter == 0
