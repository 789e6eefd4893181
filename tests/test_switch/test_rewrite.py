"""Every norm of a config becomes SN, wherever the config or a class's default has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import nn

import sn_mm
from sn_mm.errors import InputError
from sn_mm.switch import SwitchReport

pytest.importorskip('mmcv.cnn')


class Part(nn.Module):
    """A component that builds what its config holds, as the toolboxes' do."""

    def __init__(self, norm_cfg: dict | None = None, **parts: Any) -> None:
        super().__init__()


class Default(Part):
    def __init__(self, depth: int = 1, norm_cfg: dict = dict(type='BN', eps=1e-3)) -> None:  # noqa: B006
        super().__init__(norm_cfg)


class Inherits(Default):
    def __init__(self, stages: list = [dict(dw_norm_cfg=dict(type='GN'))], **kwargs: Any) -> None:  # noqa: B006
        super().__init__(**kwargs)


class Closed(Default):
    def __init__(self) -> None:
        super().__init__()


class Drawn(Part):
    def __init__(self, norm_cfg: dict = dict(type='LN')) -> None:  # noqa: B006
        super().__init__()


class BaseDenseHead(Part):
    pass


class PyramidHead(BaseDenseHead):
    pass


class YOLOXHead(BaseDenseHead):
    """As mmdet's: norms of its own for each level."""


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    for part in (Part, Default, Inherits, Closed, Drawn, PyramidHead, YOLOXHead):
        monkeypatch.setitem(MODELS.module_dict, part.__name__, part)


def switch(model: dict, norm_cfg: dict | None = None, extent: str = 'existing') -> Config:
    cfg = Config(dict(model=model))
    sn_mm.switch_norm_cfg(cfg, norm_cfg, extent)
    return cfg


def report_of(model: dict, **arguments: Any) -> SwitchReport:
    return sn_mm.switch_norm_cfg(Config(dict(model=model)), **arguments)


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('BN', 'SN'),
        ('BN1d', 'SN1d'),
        ('BN2d', 'SN'),
        ('BN3d', 'SN3d'),
        ('SyncBN', 'SN'),
        ('MMSyncBN', 'SN'),
        ('GN', 'SN'),
        ('IN', 'SN'),
        ('IN1d', 'SN1d'),
        ('IN3d', 'SN3d'),
        ('torch.nn.BatchNorm2d', 'SN'),
        (nn.BatchNorm1d, 'SN1d'),
        (nn.GroupNorm, 'SN'),
    ],
)
def test_each_kind_of_norm_becomes_the_sn_of_its_dimensions(old, new):
    pytest.importorskip('mmcv.ops')
    model = switch(dict(type='Part', norm_cfg=dict(type=old)), dict(type='SN')).model
    assert model.norm_cfg == dict(type=new)
    model = switch(dict(type='Part', norm_cfg=dict(type=old)), dict(type='sn_mm.SN2d')).model
    assert model.norm_cfg == dict(type='sn_mm.' + (new if new[-1] == 'd' else 'SN2d'))


def test_the_target_may_be_a_class():
    model = switch(dict(type='Part', norm_cfg=dict(type='BN')), dict(type=sn_mm.SwitchNorm2d)).model
    assert model.norm_cfg == dict(type='sn_mm.SN2d')


def test_norms_are_found_wherever_a_config_puts_them():
    norm = dict(type='SyncBN', requires_grad=True)
    model = dict(
        type='Part',
        backbones=[dict(type='Part', norm_cfg=norm), dict(type='Part', norm_cfg=norm)],
        plugins=[dict(cfg=dict(type='ContextBlock', norm_cfg=norm), stages=(False, True))],
        stage_plugins=((dict(norm_cfg=norm), 1), [[norm]]),
        pre_norm=norm,
        auxiliary_head=[dict(type='Part', encoding_norm_cfg=norm, channels=8)],
        neck=dict(type='Part', start_level=1, conv=dict(norm=norm)),
    )
    cfg = Config(dict(model=model))
    report = sn_mm.switch_norm_cfg(cfg)
    assert [entry.path for entry in report.switched] == [
        'model.backbones.0.norm_cfg',
        'model.backbones.1.norm_cfg',
        'model.plugins.0.cfg.norm_cfg',
        'model.stage_plugins.0.0.norm_cfg',
        'model.stage_plugins.1.0.0',
        'model.pre_norm',
        'model.auxiliary_head.0.encoding_norm_cfg',
        'model.neck.conv.norm',
    ]
    assert all(entry.old == norm for entry in report.switched)
    assert all(entry.new == dict(norm, type='SN') for entry in report.switched)
    before, after = repr(model), repr(cfg.model.to_dict())
    assert after == before.replace("'SyncBN'", "'SN'")


def test_what_sn_takes_of_the_old_norm_is_kept_and_the_rest_is_dropped():
    old = dict(type='GN', num_groups=32, requires_grad=False, eps=1e-3)
    model = switch(dict(type='Part', norm_cfg=old), dict(type='SN', eps=1e-4, sync=False)).model
    assert model.norm_cfg == dict(type='SN', requires_grad=False, eps=1e-4, sync=False)
    model = switch(dict(type='Part', norm_cfg=dict(type='BN', momentum=0.03))).model
    assert model.norm_cfg == dict(type='SN', momentum=0.03)


def test_a_norm_that_components_share_in_the_config_is_one_for_each():
    norm = ConfigDict(type='BN')
    head = dict(type='PyramidHead', norm_cfg=norm)
    model = switch(dict(type='Part', backbone=dict(norm_cfg=norm), bbox_head=head)).model
    assert model.backbone.norm_cfg == dict(type='SN')
    assert model.bbox_head.norm_cfg == dict(type='SN', normalizers=['in', 'ln'])
    assert norm == dict(type='BN')


def test_layer_norms_stay_and_are_reported():
    model = dict(type='Part', a=dict(norm_cfg=dict(type='LN')), norm_cfg=dict(type='BN'))
    cfg = switch(copy.deepcopy(model))
    assert cfg.model.a.norm_cfg == dict(type='LN')
    ((path, norm, reason),) = report_of(model).left
    assert (path, norm) == ('model.a.norm_cfg', 'LN') and 'batch norm family' in reason


def test_defaults_that_the_config_does_not_mention_are_written_into_it():
    model = switch(
        dict(type='Part', a=dict(type='Default'), b=dict(type='Inherits', depth=2))
    ).model
    assert model.a == dict(type='Default', norm_cfg=dict(type='SN', eps=1e-3))
    assert model.b.norm_cfg == dict(type='SN', eps=1e-3)
    assert model.b.stages == [dict(dw_norm_cfg=dict(type='SN'))]


def test_defaults_that_the_config_overrides_or_cannot_reach_are_left_alone():
    parts = dict(a=dict(type='Default', norm_cfg=None), b=dict(type='Closed'), c=dict(type='Drawn'))
    model = dict(type='Part', norm_cfg=dict(type='BN'), **parts)
    assert switch(model).model == dict(model, norm_cfg=dict(type='SN'))


def test_a_block_that_gets_its_norm_from_its_owner_is_not_given_one():
    model = dict(type='Default', upsample_cfg=dict(type='Default'))
    assert switch(model).model.upsample_cfg == dict(type='Default')


def test_a_head_of_shared_weights_leaves_out_the_batch_unless_told_its_scopes():
    def head(kind: str, **target: Any) -> dict:
        cfg = dict(type=kind, norm_cfg=dict(type='GN'), feature=dict(norm_cfg=dict(type='GN')))
        return switch(dict(type='Part', bbox_head=cfg), dict(type='SN', **target)).model.bbox_head

    assert head('PyramidHead').norm_cfg == dict(type='SN', normalizers=['in', 'ln'])
    assert head('PyramidHead').feature.norm_cfg == dict(type='SN')
    assert head('YOLOXHead').norm_cfg == dict(type='SN')
    chosen = head('PyramidHead', normalizers=['bn', 'in'])
    assert chosen.norm_cfg == dict(type='SN', normalizers=['bn', 'in'])
    warm = head('PyramidHead', init_importance='bn')
    assert warm.norm_cfg == dict(type='SN', normalizers=['in', 'ln'])
    assert warm.feature.norm_cfg == dict(type='SN', init_importance='bn')
    assert head('PyramidHead', init_importance='in').norm_cfg.init_importance == 'in'
    for shares in ({'ln': 0.2, 'bn': 0.3}, {'bn': 0.9}):  # of three scopes
        shared = head('PyramidHead', init_importance=shares).norm_cfg
        assert shared == dict(type='SN', normalizers=['in', 'ln'])
    chosen = head('PyramidHead', normalizers=['in', 'ln'], init_importance={'ln': 0.9})
    assert chosen.norm_cfg.init_importance == {'ln': 0.9}
    report = report_of(dict(type='PyramidHead', norm_cfg=dict(type='BN')))
    assert report.switched[0].reason == 'one set of weights for all levels'


def test_the_extent_backbone_leaves_the_rest_and_says_so():
    norm = dict(type='BN')
    model = dict(type='Part', backbone=dict(norm_cfg=norm), neck=dict(norm_cfg=norm))
    cfg = switch(dict(model, detector=model), extent='backbone')
    for part in (cfg.model, cfg.model.detector):
        assert part.backbone.norm_cfg == dict(type='SN') and part.neck.norm_cfg == norm
    assert 'outside the backbone' in report_of(model, extent='backbone').left[0].reason


def test_a_teacher_keeps_its_norms():
    part = dict(type='Default')
    cfg = switch(dict(type='Part', backbone=part, teacher_backbone=part))
    assert cfg.model.backbone.norm_cfg.type == 'SN' and cfg.model.teacher_backbone == part


@pytest.mark.parametrize('model', [dict(type='Part'), dict(type='Part', norm_cfg=dict(type='LN'))])
def test_nothing_to_switch_is_an_error_and_changes_nothing(model):
    cfg = Config(dict(model=model))
    with pytest.raises(InputError, match="nothing to switch.*'backbone'"):
        sn_mm.switch_norm_cfg(cfg, extent='backbone')
    assert cfg.to_dict() == dict(model=model)


def test_a_switched_config_has_nothing_to_switch():
    cfg = switch(dict(type='Part', norm_cfg=dict(type='BN')))
    with pytest.raises(InputError, match='nothing to switch.*norms left: SN'):
        sn_mm.switch_norm_cfg(cfg)


@pytest.mark.parametrize(
    ('norm_cfg', 'said'),
    [
        (dict(type='LN'), "one of SN, SN1d, .*, SSN, .*, BN, SyncBN, GN, IN, got 'LN'"),
        (dict(eps=1), 'got None'),
        (dict(type=nn.BatchNorm2d), 'IN, got'),
        (dict(type='SN', num_groups=2, foo=1), 'SN takes requires_grad, eps.*got num_groups, foo'),
        (dict(type='SN', normalizers=['foo']), "SN refuses.*got .'foo',"),
        (dict(type='SN', sync='no'), 'SN refuses'),
        (dict(type='SN', eps='small'), "eps must be a number, got 'small'"),
        (dict(type='SN', momentum='x'), "momentum must be a number or None, got 'x'"),
        (dict(type='SN', requires_grad=1), 'requires_grad must be True or False, got 1'),
    ],
)
def test_another_target_is_refused(norm_cfg, said):
    with pytest.raises(InputError, match=said):
        switch(dict(type='Part', norm_cfg=dict(type='BN')), norm_cfg)


def test_another_extent_or_a_config_without_a_model_is_refused():
    with pytest.raises(InputError, match='one of existing, backbone, all, got .head.'):
        switch(dict(type='Part', norm_cfg=dict(type='BN')), extent='head')
    with pytest.raises(InputError, match='no model'):
        sn_mm.switch_norm_cfg(Config(dict(a=1)))


def written_hooks(extent: str) -> list[dict]:
    return [
        dict(type='sn_mm.UnconvertedNormHook', extent=extent),
        dict(type='sn_mm.OptimizerCheckHook'),
        dict(type='sn_mm.ImportanceHook'),
    ]


def test_the_config_imports_sn_mm_and_has_the_hook_that_warns():
    cfg = Config(dict(model=dict(type='Default'), custom_hooks=[dict(type='EMAHook')]))
    sn_mm.switch_norm_cfg(cfg)
    assert cfg.custom_imports['imports'] == ['sn_mm']
    hooks = [dict(type='EMAHook'), *written_hooks('existing')]
    assert cfg.custom_hooks == hooks


def test_a_second_switch_takes_the_place_of_the_first_ones_hook():
    norm = dict(type='BN')
    cfg = switch(dict(type='Part', backbone=dict(norm_cfg=norm), norm_cfg=norm), extent='backbone')
    sn_mm.switch_norm_cfg(cfg, extent='all')
    assert cfg.custom_hooks == written_hooks('all')


def test_sparse_layers_come_with_their_hook_and_take_the_place_of_sn():
    cfg = switch(dict(type='Part', norm_cfg=dict(type='BN1d')), dict(type='SSN'))
    assert cfg.model.norm_cfg == dict(type='SSN1d')
    assert cfg.custom_hooks[-1] == dict(type='sn_mm.SparseSwitchHook')
    sn_mm.switch_norm_cfg(cfg, dict(type='SN'))
    assert cfg.model.norm_cfg == dict(type='SN1d')
    assert cfg.custom_hooks == written_hooks('existing')
    sn_mm.switch_norm_cfg(cfg, dict(type=sn_mm.SparseSwitchNorm2d))
    assert cfg.model.norm_cfg == dict(type='sn_mm.SSN1d')
    sn_mm.switch_norm_cfg(cfg, dict(type='BN'))
    assert cfg.model.norm_cfg == dict(type='BN1d') and not cfg.custom_hooks


def test_what_would_keep_sn_from_learning_is_noted():
    init = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    norm = dict(type='BN', requires_grad=False)
    backbone = dict(type='Part', frozen_stages=1, init_cfg=init, norm_cfg=norm)
    frozen, fixed = report_of(dict(type='Part', backbone=backbone)).notes
    assert 'model.backbone.frozen_stages=1' in frozen and 'torchvision://resnet50' in frozen
    assert 'requires_grad=False' in fixed and 'model.backbone.norm_cfg' in fixed

    cfg = dict(type='Part', backbone=backbone)
    assert not report_of(cfg, norm_cfg=dict(type='SN', init_importance='bn')).notes

    norm = dict(type='GN', num_groups=32)
    backbone = dict(type='Part', frozen_stages=-1, norm_cfg=norm)
    (renamed,) = report_of(dict(type='Part', pretrained='gn.pth', backbone=backbone)).notes
    assert 'GN in gn.pth do not load' in renamed
    assert not report_of(dict(type='Part', backbone=backbone)).notes


@pytest.mark.parametrize('kind', ['PreciseBNHook', 'mmpretrain.PreciseBNHook'])
def test_a_hook_that_measures_batch_norm_alone_is_noted(kind):
    cfg = Config(dict(model=dict(type='Default'), custom_hooks=[dict(type=kind, interval=1)]))
    (note,) = sn_mm.switch_norm_cfg(cfg).notes
    assert "dict(type='PreciseSNHook', bn=True)" in note


def test_the_table_shows_paths_norms_reasons_and_notes(capsys):
    from rich.console import Console

    backbone = dict(type='Default', frozen_stages=0, init_cfg=dict(checkpoint='a.pth'))
    neck = dict(norm_cfg=dict(type='LN'))
    report = report_of(dict(type='Part', backbone=backbone, neck=neck))
    Console(width=200).print(report.table())
    shown = capsys.readouterr().out
    for text in ('model.backbone.norm_cfg', 'BN, eps=0.001', 'SN, eps=0.001', 'default of Default'):
        assert text in shown
    assert 'model.neck.norm_cfg' in shown and 'as it was' in shown and 'Note: model.back' in shown
