"""The learning rate of the importance in MMEngine's runner, and the word on what came of it."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from toy_training import Model, build_runner, by_iteration

from sn_mm import SwitchNorm2d
from sn_mm.cli.train import check_importance_group
from sn_mm.engine.hooks import ImportanceHook
from sn_mm.engine.importance_constructor import LR_MULT
from sn_mm.engine.safe_load import safe_load
from sn_mm.errors import InputError
from sn_mm.switch.importance import group_importance

OURS = 'sn_mm.ImportanceOptimWrapperConstructor'
ADAM = {'type': 'Adam', 'lr': 1e-3}


class Rates(Hook):
    """Remembers the learning rates of the first group and of the importance in each iteration."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        self.seen.append((groups[0]['lr'], groups[-1]['lr']))


def wrapper(optimizer: dict = ADAM, **settings: Any) -> dict:
    return {'optimizer': optimizer, 'constructor': OURS, **settings}


def trained(tmp_path, *, resume: bool = False, **changes: Any):
    rates = Rates()
    runner = build_runner(
        tmp_path, ImportanceHook(), rates, **{'optim_wrapper': wrapper(), **changes}
    )
    if resume:
        runner._resume = True
    runner.train()
    return rates.seen, runner


def group_of(runner: Runner) -> dict:
    return runner.optim_wrapper.optimizer.param_groups[-1]


def test_steps_are_counted_by_epoch_by_iteration_and_by_update(tmp_path, monkeypatch):
    monkeypatch.setattr('sn_mm.optim.FEWEST_STEPS', 1)
    for number, (changes, steps) in enumerate(
        [
            ({}, 6),
            (by_iteration(), 6),
            ({'optim_wrapper': wrapper(accumulative_counts=4)}, 2),
            ({'optim_wrapper': wrapper({'type': 'SGD', 'lr': 0.1, 'momentum': 0.9})}, 6 * 12 / 400),
        ]
    ):
        seen, runner = trained(tmp_path / str(number), **changes)
        assert all(own == pytest.approx(12 / steps) for _, own in seen)
        assert group_of(runner)[LR_MULT] == pytest.approx(12 / steps / seen[0][0])


@pytest.mark.parametrize(
    'schedulers',
    [
        [
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=2),
            dict(type='CosineAnnealingLR', by_epoch=False, begin=2, end=6, T_max=4),
        ],
        dict(type='OneCycleLR', by_epoch=False, eta_max=0.01, total_steps=6),
        dict(type='mmdet.QuadraticWarmupLR', by_epoch=False, begin=0, end=4),
        dict(type='MultiStepLR', by_epoch=True, milestones=[1]),
    ],
    ids=['cosine', 'OneCycle', 'quadratic', 'steps'],
)
def test_schedules_scale_it_as_the_other_groups(tmp_path, schedulers):
    if 'mmdet' in str(schedulers):
        pytest.importorskip('mmdet')
    seen, runner = trained(tmp_path, param_scheduler=schedulers)
    times = group_of(runner)[LR_MULT]
    assert times > 20 and len({lr for lr, _ in seen}) > 1
    assert [own for _, own in seen] == pytest.approx([lr * times for lr, _ in seen])


def test_the_learning_rate_scaled_to_the_batch_is_the_one_that_counts(tmp_path):
    scale = dict(enable=True, base_batch_size=1)  # batches of 2: twice the learning rate
    seen, _ = trained(tmp_path, auto_scale_lr=scale)
    assert seen[0] == pytest.approx((2e-3, 12 / 50))


def test_a_resumed_training_goes_on_with_the_learning_rate_that_it_had(tmp_path):
    schedule = dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, end=4)
    whole, _ = trained(tmp_path / 'whole', param_scheduler=schedule)
    trained(
        tmp_path / 'parts', param_scheduler=schedule, train_cfg=dict(by_epoch=True, max_epochs=1)
    )
    rest, _ = trained(tmp_path / 'parts', param_scheduler=schedule, resume=True)
    assert rest == [pytest.approx(pair) for pair in whole[3:]]


def test_a_training_of_version_1_0_is_refused_in_one_line(tmp_path):
    cfg = Config(dict(load_from='old.pth', optim_wrapper=dict(optimizer=ADAM)))
    for name, settings in (('old', cfg.optim_wrapper.to_dict()), ('new', wrapper())):
        trained(tmp_path / name, optim_wrapper=settings)
    old, new = (safe_load(tmp_path / name / 'epoch_1.pth') for name in ('old', 'new'))
    check_importance_group(cfg, old)
    group_importance(cfg)
    check_importance_group(cfg, new)
    with pytest.raises(InputError, match='old.pth .* as in sn_mm 1.0: the config in its work dir'):
        check_importance_group(cfg, old)


def test_settings_of_the_user_and_optimizers_without_a_measurement_stay(tmp_path):
    given = wrapper(paramwise_cfg=dict(importance=dict(lr_mult=7)))
    seen, _ = trained(tmp_path / 'given', optim_wrapper=given)
    assert seen[0] == pytest.approx((1e-3, 7e-3))
    seen, _ = trained(tmp_path / 'other', optim_wrapper=wrapper({'type': 'RMSprop', 'lr': 1e-3}))
    assert seen[0] == (1e-3, 1e-3)
    seen, _ = trained(tmp_path / 'none', optim_wrapper=dict(optimizer=ADAM))
    assert seen[0] == (1e-3, 1e-3)


@pytest.fixture
def logged(monkeypatch):
    """What the hook says, of trainings as short as those here too."""
    monkeypatch.setattr('sn_mm.engine.hooks.importance.FEWEST_STEPS', 6)
    lines: list[str] = []
    monkeypatch.setattr(
        'sn_mm.engine.hooks.importance.print_log', lambda line, *args: lines.append(line)
    )
    return lines


def test_one_line_before_training_and_one_after_it_if_nothing_moved(tmp_path, logged):
    trained(tmp_path / 'rule')
    (line,) = logged
    assert '2 parameters in a group of their own' in line and '240 times' in line
    logged.clear()

    slow = wrapper(paramwise_cfg=dict(importance=dict(lr_mult=2)))
    trained(tmp_path / 'slow', optim_wrapper=slow)
    (line,) = logged
    assert 'hardly moved' in line and '2 times' in line and 'importance.lr_mult' in line
    logged.clear()

    trained(tmp_path / 'none', optim_wrapper=dict(optimizer=ADAM))
    (line,) = logged
    assert 'hardly moved' in line and OURS in line


@pytest.mark.parametrize('norm', [dict(init_importance='bn'), dict(normalizers=['bn'])], ids=str)
def test_layers_that_are_meant_to_stay_are_no_reason_to_warn(tmp_path, logged, norm):
    model = Model()
    model.norm = SwitchNorm2d(4, **norm)
    trained(tmp_path, model=model, optim_wrapper=dict(optimizer=ADAM))
    assert logged == []
