"""Checkpoints that survive a kill and a full disk, and from which training goes on exactly."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from toy_training import build_runner, by_iteration, disk_full_at, loader

from sn_mm.engine.resume.atomic_backend import AtomicBackend
from sn_mm.engine.resume.random_states import get_random_states, set_random_states
from sn_mm.engine.safe_load import safe_load
from sn_mm.errors import InputError

HOOK = dict(type='ResumableCheckpointHook')


class Killed(BaseException):
    pass


class KillAfter(Hook):
    """Ends a training in the middle of an iteration, as a signal would."""

    priority = 'VERY_HIGH'

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter == self.iterations:
            raise Killed


def by_epoch(**data: Any) -> dict:
    return dict(
        train_cfg=dict(by_epoch=True, max_epochs=4),
        train_dataloader=dict(loader(), **data),
        default_hooks=dict(checkpoint=dict(HOOK, interval=1)),
    )


def in_iterations(**data: Any) -> dict:
    settings = by_iteration(val_interval=2)
    settings['train_dataloader'].update(data)
    settings['default_hooks'] = dict(checkpoint=dict(HOOK, by_epoch=False, interval=2))
    return settings


def final_weights(work_dir: Path, settings: dict, resumed: bool) -> dict:
    """Weights at the end of a training, which is killed and resumed on the way if ``resumed``."""
    if resumed:
        with pytest.raises(Killed):
            build_runner(work_dir, KillAfter(5), **settings).train()
        last = (work_dir / 'last_checkpoint').read_text()
        settings = dict(settings, load_from=last, resume=True)
    runner = build_runner(work_dir, **settings)
    runner.train()
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.terminate()  # else their loaders wait for them, seconds each
    return {key: value.clone() for key, value in runner.model.state_dict().items()}


def differ(one: dict, other: dict) -> list[str]:
    return [key for key in one if not torch.equal(one[key], other[key])]


WORKERS = dict(num_workers=2, persistent_workers=False)
SETTINGS = {
    'epochs': by_epoch(),
    'epochs, workers': by_epoch(**WORKERS),
    'epochs, lasting workers': by_epoch(num_workers=2, persistent_workers=True),
    'iterations': in_iterations(),
    'iterations, workers': in_iterations(**WORKERS),
    'iterations, end of the data': in_iterations(
        sampler=dict(type='DefaultSampler', shuffle=True), **WORKERS
    ),
}


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.slow if 'workers' in name else ()) for name in SETTINGS],
)
def test_a_killed_training_resumes_to_the_very_weights_of_an_undisturbed_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS[name]
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda _: None)
    undisturbed = final_weights(tmp_path / 'one', settings, resumed=False)
    resumed = final_weights(tmp_path / 'other', settings, resumed=True)
    assert differ(undisturbed, resumed) == []


def test_the_hook_of_mmengine_resumes_with_other_random_numbers(tmp_path: Path) -> None:
    settings = by_epoch()
    settings['default_hooks'] = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    undisturbed = final_weights(tmp_path / 'one', settings, resumed=False)
    assert differ(undisturbed, final_weights(tmp_path / 'other', settings, resumed=True))


def test_random_states_survive_a_checkpoint_that_holds_weights_only(tmp_path: Path) -> None:
    np.random.randn()  # leaves a second number behind, which is a part of the state
    torch.save(get_random_states(), tmp_path / 'states.pth')
    drawn = random.random(), np.random.randn(3).tolist(), torch.rand(3).tolist()
    set_random_states(safe_load(tmp_path / 'states.pth'))
    assert drawn == (random.random(), np.random.randn(3).tolist(), torch.rand(3).tolist())


def test_states_of_another_number_of_processes_are_left_alone(tmp_path: Path) -> None:
    build_runner(tmp_path, **by_epoch()).train()
    checkpoint = safe_load(tmp_path / 'epoch_2.pth')
    checkpoint['meta']['random_states'] *= 2
    torch.save(checkpoint, tmp_path / 'of_two.pth')
    settings = by_epoch()
    runner = build_runner(tmp_path, **settings, load_from=str(tmp_path / 'of_two.pth'), resume=True)
    with patch.object(MMLogger.get_current_instance(), 'log') as log:
        runner.train()
    assert any('random states of 2 processes, this run has 1' in str(c) for c in log.mock_calls)


def saved(work_dir: Path) -> set[str]:
    return {path.name for path in work_dir.iterdir() if path.is_file() and path.suffix != '.py'}


class Worsening(BaseMetric):
    """Better until the second validation."""

    def process(self, *args: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.calls = getattr(self, 'calls', 0) + 1
        return {'acc': float(min(self.calls, 2))}


def keeping(number: int) -> dict:
    settings = by_epoch()
    settings['default_hooks']['checkpoint'].update(max_keep_ckpts=number, save_best='acc')
    return dict(settings, val_evaluator=[Worsening()])


def test_as_many_checkpoints_stay_as_the_config_says_and_the_best(tmp_path: Path) -> None:
    build_runner(tmp_path, **keeping(2)).train()
    kept = {'best_acc_epoch_2.pth', 'epoch_3.pth', 'epoch_4.pth', 'last_checkpoint'}
    assert saved(tmp_path) == kept
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')


@pytest.mark.parametrize('victim', ['epoch_2.pth', 'best_acc_epoch_2.pth'])
def test_a_full_disk_leaves_the_checkpoints_before(victim: str, tmp_path: Path) -> None:
    with disk_full_at(victim):
        with pytest.raises(InputError, match=rf'{victim} could not be written: No space left'):
            build_runner(tmp_path, **keeping(1)).train()
    last = (tmp_path / 'last_checkpoint').read_text()
    expected = 'epoch_1.pth' if victim == 'epoch_2.pth' else 'epoch_2.pth'
    assert last == str(tmp_path / expected)
    kept = {expected, 'best_acc_epoch_1.pth', 'last_checkpoint'}
    assert saved(tmp_path) == kept
    for name in kept - {'last_checkpoint'}:
        safe_load(tmp_path / name)


def test_resuming_deletes_what_a_kill_left(tmp_path: Path) -> None:
    with patch('sn_mm.engine.hooks.resumable_checkpoint._remove', side_effect=Killed):
        with pytest.raises(Killed):
            build_runner(tmp_path, **keeping(1)).train()
    assert {path.name for path in tmp_path.glob('epoch*')} == {'epoch_1.pth', 'epoch_2.pth'}
    (tmp_path / 'epoch_2.pth.tmp').write_bytes(b'half')
    last = (tmp_path / 'last_checkpoint').read_text()
    build_runner(tmp_path, **keeping(1), load_from=last, resume=True).train()
    assert {path.name for path in tmp_path.glob('epoch*')} == {'epoch_4.pth'}


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / 'folder/file'
    AtomicBackend().put(b'one', file)
    (tmp_path / 'folder/file.tmp').write_bytes(b'left by a kill')
    with patch('os.replace', side_effect=Killed), pytest.raises(Killed):
        AtomicBackend().put(b'two', file)
    assert file.read_bytes() == b'one'
    AtomicBackend().put(b'two', file)
    assert file.read_bytes() == b'two' and len(list(file.parent.iterdir())) == 1
