"""Norms that no config reaches: found, converted before the optimizer is built, or warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS
from torch import nn
from toy_training import Model, build_runner

import sn_mm
from sn_mm import SwitchNorm1d, SwitchNorm2d
from sn_mm.engine.hooks import UnconvertedNormHook
from sn_mm.errors import InputError
from sn_mm.switch import build_switched_model, convert_unconverted, find_unconverted


class DyHead(nn.Module):
    """As mmdet's: a block that all levels go through."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)


class HardCoded(Model):
    """A norm of the config, one of its own, a pyramid's and a teacher's."""

    def __init__(self, norm_cfg: dict = dict(type='BN')) -> None:  # noqa: B006
        super().__init__()
        self.backbone = nn.Sequential(MODELS.get(norm_cfg['type'])(4), nn.BatchNorm1d(4))
        self.neck = DyHead()
        self.teacher_model = nn.ModuleList([nn.BatchNorm2d(4)])


OWN = ['bn', 'backbone.1', 'neck.norm']


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    pytest.importorskip('mmcv.cnn')
    monkeypatch.setitem(MODELS.module_dict, 'HardCoded', HardCoded)


def names(model: nn.Module, *extent: str) -> list[str]:
    return [name for name, _ in find_unconverted(model, *extent)]


def test_every_kind_is_found_with_its_name_and_nothing_else():
    kinds = [nn.BatchNorm1d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.BatchNorm3d]
    layers = [*(kind(2) for kind in kinds), nn.GroupNorm(1, 2)]
    others = [nn.LayerNorm(2), SwitchNorm2d(2), SwitchNorm1d(2), nn.Conv2d(1, 1, 1)]
    model = nn.Sequential(*layers, *others)
    assert find_unconverted(model) == [(str(i), type(layer)) for i, layer in enumerate(layers)]


def test_an_extent_asks_for_what_its_switch_is_for():
    model = HardCoded(dict(type='SN'))
    assert names(model) == [*OWN, 'teacher_model.0']
    assert names(model, 'existing') == names(model, 'all') == OWN
    assert names(model, 'backbone') == ['backbone.1']


def test_what_no_config_reaches_is_converted_as_the_config_is_switched():
    model = convert_unconverted(HardCoded(), dict(type='SN', eps=0.5, requires_grad=False))
    assert names(model) == ['teacher_model.0']
    assert type(model.backbone[1]) is SwitchNorm1d and type(model.bn) is SwitchNorm2d
    assert model.bn.normalizers == ('in', 'ln', 'bn') and model.neck.norm.normalizers == (
        'in',
        'ln',
    )
    assert model.bn.eps == model.neck.norm.eps == 0.5
    assert not any(p.requires_grad for p in model.bn.parameters())
    assert all(p.requires_grad for p in model.norm.parameters())
    chosen = convert_unconverted(HardCoded(), dict(type='SN', normalizers=['bn']))
    assert chosen.neck.norm.normalizers == ('bn',)
    assert names(convert_unconverted(HardCoded(), dict(type='SN'), 'backbone')) == [
        'bn', 'neck.norm', 'teacher_model.0',
    ]  # fmt: skip


def test_sparse_layers_are_converted_to_by_name():
    model = convert_unconverted(HardCoded(), dict(type='SSN'))
    kinds = [type(model.get_submodule(name)).__name__ for name in OWN]
    assert kinds == ['SparseSwitchNorm2d', 'SparseSwitchNorm1d', 'SparseSwitchNorm']


def test_a_norm_that_stays_as_it_is_is_not_frozen():
    class Own(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    model = nn.Sequential(Own(4), nn.BatchNorm2d(4))
    convert_unconverted(model, dict(type='SN', requires_grad=False))
    assert type(model[0]) is Own and model[0].weight.requires_grad
    assert type(model[1]) is SwitchNorm2d and not model[1].weight.requires_grad


def test_a_norm_of_a_pyramid_that_has_another_name_too_leaves_out_the_batch():
    model = nn.Module()
    head = DyHead()
    model.alias, model.neck = head.norm, head
    convert_unconverted(model, dict(type='SN'))
    assert model.alias is model.neck.norm and model.alias.normalizers == ('in', 'ln')


def test_a_switched_model_is_built_with_nothing_left_and_weights_keep_their_names():
    settings = dict(type='HardCoded', norm_cfg=dict(type='SN'))
    model = build_switched_model(settings | dict(extent='existing'), norm_cfg=dict(type='SN'))
    assert isinstance(model, HardCoded) and not names(model, 'existing')
    named = dict(type='sn_mm.SwitchedModel', switched=settings)
    assert not names(MODELS.build(named | dict(norm_cfg=dict(type='SN'))), 'existing')
    own = {key for key in HardCoded().state_dict() if not key.startswith('neck')}
    assert own <= set(model.state_dict())


def train(work_dir: Path, model: dict, **changes: Any) -> tuple[Any, str]:
    cfg = Config(dict(model=model))
    sn_mm.switch_norm_cfg(cfg)
    hook = HOOKS.build(cfg.custom_hooks[0])
    built = MODELS.build(cfg.model)
    runner = build_runner(work_dir, hook, model=built, log_level='WARNING', **changes)
    runner.train()
    (log,) = work_dir.glob('*/*.log')
    return runner, log.read_text()


def test_one_warning_names_what_no_config_reaches(tmp_path):
    runner, log = train(tmp_path, dict(type='HardCoded'))
    (line,) = [line for line in log.splitlines() if 'hard-coded' in line]
    assert 'WARNING' in line and '3 norms' in line
    assert 'bn (BatchNorm2d), backbone.1 (BatchNorm1d), neck.norm (GroupNorm)' in line
    assert names(runner.model) == [*OWN, 'teacher_model.0']


def test_the_warning_tells_norms_that_a_switch_converts_from_those_that_stay(tmp_path, monkeypatch):
    class Activated(nn.BatchNorm2d):
        """As timm's BatchNormAct2d."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    class Mixed(HardCoded):
        def __init__(self, own: bool, norm_cfg: dict = dict(type='BN')) -> None:  # noqa: B006
            super().__init__(norm_cfg)
            self.neck = Activated(4)
            if not own:
                self.bn, self.backbone = nn.Identity(), nn.Sequential(SwitchNorm2d(4))

    monkeypatch.setitem(MODELS.module_dict, 'Mixed', Mixed)
    promise = 'convert them with --norm SN'
    for own in (True, False):
        _, log = train(tmp_path / str(own), dict(type='Mixed', own=own))
        (line,) = [line for line in log.splitlines() if 'WARNING' in line and 'neck' in line]
        converted, _, stay = line.partition('norms do more than a norm')
        assert (promise in converted) == ('2 norms' in converted) == own
        assert 'neck (Activated)' in stay and 'neck' not in converted and promise not in stay


def test_frozen_norms_are_named(tmp_path, monkeypatch):
    class Frozen(HardCoded):
        def __init__(self, norm_cfg: dict = dict(type='BN')) -> None:  # noqa: B006
            super().__init__(norm_cfg)
            self.bn = pytest.importorskip('torchvision').ops.FrozenBatchNorm2d(4)

    monkeypatch.setitem(MODELS.module_dict, 'Frozen', Frozen)
    _, log = train(tmp_path, dict(type='Frozen'))
    assert '1 norms are frozen BatchNorms, and stay: bn (FrozenBatchNorm2d).' in log


def test_no_warning_where_nothing_is_left(tmp_path):
    settings = dict(type='HardCoded', norm_cfg=dict(type='SN'))
    model = dict(type='sn_mm.SwitchedModel', switched=settings, norm_cfg=dict(type='BN'))
    runner, log = train(tmp_path, model)
    assert 'hard-coded' not in log
    optimized = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params']}
    assert {id(p) for p in runner.model.bn.parameters()} <= optimized
    moved = runner.model.bn.mean_weight.detach()
    assert not torch.equal(moved, torch.ones_like(moved))


def test_the_hook_is_found_by_name_and_refuses_another_extent():
    assert type(HOOKS.build(dict(type='UnconvertedNormHook'))).__module__.startswith('sn_mm')
    with pytest.raises(InputError, match="extent of the switch must be one of .*, got 'heads'"):
        HOOKS.build(dict(type='sn_mm.UnconvertedNormHook', extent='heads'))


def test_a_config_that_version_1_0_switched_builds_and_says_its_new_names():
    norm_cfg = dict(type='SN')
    settings = dict(type='HardCoded', norm_cfg=norm_cfg, scope='backbone')
    with pytest.warns(DeprecationWarning, match="'scope' in model.switched is called 'extent'"):
        model = MODELS.build(dict(type='sn_mm.SwitchedModel', switched=settings, norm_cfg=norm_cfg))
    assert names(model, 'backbone') == [] and 'bn' in names(model)
    with pytest.warns(DeprecationWarning, match=r"UnconvertedNormHook\(extent='backbone'\)"):
        hook = HOOKS.build(dict(type='sn_mm.LeftoverNormHook', scope='backbone'))
    assert isinstance(hook, UnconvertedNormHook) and hook.extent == 'backbone'


def test_old_names_work_and_say_the_new_ones():
    with pytest.warns(DeprecationWarning, match='find_leftovers is called find_unconverted'):
        assert sn_mm.switch.find_leftovers is find_unconverted
    with pytest.warns(DeprecationWarning, match='convert_leftovers is called convert_unconverted'):
        assert sn_mm.switch.convert_leftovers is convert_unconverted
    with pytest.warns(DeprecationWarning, match='simplify is called revert_switch_norm'):
        assert sn_mm.simplify is sn_mm.revert_switch_norm
    with pytest.warns(DeprecationWarning, match='is called extent'):
        sn_mm.switch_norm_cfg(Config(dict(model=dict(type='HardCoded'))), scope='all')
    with pytest.raises(AttributeError, match="'sn_mm' has no attribute 'no_such_name'"):
        _ = sn_mm.no_such_name
