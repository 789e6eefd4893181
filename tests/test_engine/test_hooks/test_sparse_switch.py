"""The radius of Sparse SN in trainings of MMEngine: any loop, and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from toy_training import Model, build_runner, by_iteration

from sn_mm import SparseSwitchNorm2d
from sn_mm.engine.hooks import SparseSwitchHook


class SparseModel(Model):
    def __init__(self) -> None:
        super().__init__()
        self.norm = SparseSwitchNorm2d(4)


class Radii(Hook):
    """The radius of each iteration."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.seen.append(float(runner.model.norm.radius))


def radii(work_dir: Path, **settings) -> list[float]:
    watch = Radii()
    runner = build_runner(
        work_dir, dict(type='SparseSwitchHook'), watch, **{'model': SparseModel(), **settings}
    )
    runner.train()
    assert max(runner.model.norm.importance()['mean'].values()) == 1
    assert runner.model.norm.mean_fixed.sum() == 1
    return watch.seen


@pytest.mark.parametrize('kind', ['SparseSwitchHook', 'sn_mm.SparseSwitchHook'])
def test_found_by_name(kind: str) -> None:
    assert type(HOOKS.build(dict(type=kind))) is SparseSwitchHook


@pytest.mark.parametrize('loop', [{}, by_iteration()], ids=['epochs', 'iterations'])
def test_radius_grows_with_the_iterations_of_any_loop(tmp_path: Path, loop: dict) -> None:
    assert radii(tmp_path, **loop) == pytest.approx([i / 6 for i in range(6)])


def test_a_resumed_training_goes_on_with_its_radius(tmp_path: Path) -> None:
    radii(tmp_path, **by_iteration())
    resumed = radii(tmp_path, **by_iteration(), resume=True, load_from=f'{tmp_path}/iter_4.pth')
    assert resumed == pytest.approx([4 / 6, 5 / 6])
