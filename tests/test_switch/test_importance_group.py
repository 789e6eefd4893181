"""The importance of SN in the optimizer of switched configs."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

import sn_mm
from sn_mm.engine.importance_constructor import LR_MULT
from sn_mm.errors import InputError
from sn_mm.switch.importance import group_importance

SGD = {'type': 'SGD', 'lr': 0.1, 'weight_decay': 1e-4}


def config(optimizer: dict = SGD, **wrapper: object) -> Config:
    return Config({'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': optimizer, **wrapper}})


def groups(cfg: Config) -> dict[str, dict]:
    """The group of each parameter of a small model with SN."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), sn_mm.SwitchNorm2d(4))
    optimizer = build_optim_wrapper(model, Config(cfg.to_dict()).optim_wrapper).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group['params']}


@pytest.mark.parametrize(
    'cfg',
    [
        config(),
        config({'type': 'Adam', 'lr': 0.1}),
        config(paramwise_cfg={'norm_decay_mult': 0.0}),
        config(paramwise_cfg={'custom_keys': {'0': {'lr_mult': 0.1}}}),
        config(constructor='DefaultOptimWrapperConstructor'),
    ],
    ids=['SGD', 'Adam', 'norms', 'custom_keys', 'constructor'],
)
def test_only_the_importance_changes_and_a_second_switch_changes_nothing(cfg):
    before = groups(cfg)
    (note,) = group_importance(cfg)
    assert 'no weight decay, and a learning rate of its own (' in note
    found, written = groups(cfg), cfg.to_dict()
    for name in ('mean_weight', 'var_weight'):
        group = found.pop(f'1.{name}')
        assert (group['weight_decay'], group[LR_MULT], group['lr']) == (0, None, 0.1)
        del before[f'1.{name}']
    for name, group in before.items():
        for key in ('lr', 'weight_decay'):
            assert found[name][key] == group[key]
    assert group_importance(cfg) == [note] and cfg.to_dict() == written
    assert [hook['type'] for hook in cfg.custom_hooks] == ['sn_mm.ImportanceHook']


def test_a_learning_rate_of_the_importance_is_written_and_stays():
    cfg = config()
    assert '30 times' in group_importance(cfg, 30)[0]
    assert '30 times' in group_importance(cfg)[0]  # a second switch that says nothing of it
    assert groups(cfg)['1.mean_weight']['lr'] == pytest.approx(3)


@pytest.mark.parametrize('norms', [{}, {'norm_decay_mult': 0.0}], ids=['', 'norms'])
def test_custom_keys_of_the_importance_stay_without_weight_decay(norms):
    """MMEngine has full weight decay on what a custom key names, unless the key says otherwise."""
    keys = {'mean_weight': {'lr_mult': 30}, 'bn1.var_weight': {'decay_mult': 0.5}}
    cfg = config(paramwise_cfg={**norms, 'custom_keys': keys})
    (note,) = group_importance(cfg)
    assert 'custom_keys name the importance' in note
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys == {
        'mean_weight': {'lr_mult': 30, 'decay_mult': 0.0},
        'bn1.var_weight': {'decay_mult': 0.5},
    }
    assert 'constructor' not in cfg.optim_wrapper
    with pytest.raises(InputError, match='^importance_lr_mult cannot be set: .* custom_keys'):
        group_importance(cfg, 30)


def test_several_optimizers_stay_and_that_is_said():
    cfg = Config({'optim_wrapper': {'a': {'optimizer': SGD}, 'constructor': 'Several'}})
    before = cfg.to_dict()
    (note,) = group_importance(cfg)
    assert 'several optimizers' in note and cfg.optim_wrapper == before['optim_wrapper']
    assert group_importance(Config({})) == []


def test_the_switch_writes_it_and_another_norm_does_not():
    pytest.importorskip('mmdet')
    for norm, written in (
        ({'type': 'SN'}, {}),
        ({'type': 'SN', 'importance_lr_mult': 30}, {'lr_mult': 30}),
        ({'type': 'BN'}, None),
    ):
        cfg = Config({**config().to_dict(), 'default_scope': 'mmdet'})
        cfg.model = {'type': 'mmdet.ResNet', 'depth': 18, 'norm_cfg': {'type': 'BN'}}
        sn_mm.switch_config(cfg, norm, 'existing')
        assert cfg.model.norm_cfg == {'type': norm['type']}
        assert cfg.optim_wrapper.get('paramwise_cfg', {}).get('importance') == written
        hooks = [hook['type'] for hook in cfg.custom_hooks]
        assert ('sn_mm.ImportanceHook' in hooks) == (written is not None)


@pytest.mark.parametrize('lr_mult', [None, 30])
def test_a_model_whose_norms_are_all_hard_coded_gets_it_too(lr_mult):
    MODELS.register_module(
        'BatchNormAlone', module=lambda: nn.Sequential(nn.BatchNorm2d(4)), force=True
    )
    cfg = Config({**config().to_dict(), 'model': {'type': 'BatchNormAlone'}})
    given = {} if lr_mult is None else {'importance_lr_mult': lr_mult}
    report = sn_mm.switch_config(cfg, {'type': 'SN', **given}, 'existing')
    assert any('a learning rate of its own' in note for note in report.notes)
    assert cfg.model.switched.norm_cfg == {'type': 'SN'}
    assert groups(cfg)['1.mean_weight'][LR_MULT] == lr_mult


def test_a_model_whose_norms_are_all_hard_coded_has_the_hooks_of_any_switched_config():
    MODELS.register_module(
        'BatchNormAlone', module=lambda: nn.Sequential(nn.BatchNorm2d(4)), force=True
    )
    cfg = Config({**config().to_dict(), 'model': {'type': 'BatchNormAlone'}})
    sn_mm.switch_config(cfg, {'type': 'SSN'}, 'existing')
    assert [hook['type'] for hook in cfg.custom_hooks] == [
        'sn_mm.UnconvertedNormHook',
        'sn_mm.OptimizerCheckHook',
        'sn_mm.ImportanceHook',
        'sn_mm.SparseSwitchHook',
    ]


@pytest.mark.parametrize(
    ('norm', 'message'),
    [
        ({'type': 'GN', 'importance_lr_mult': 30}, 'GN takes .*, got importance_lr_mult'),
        (
            {'type': 'SN', 'importance_lr_mult': 'x'},
            "importance_lr_mult must be a number >= 0, got 'x'",
        ),
    ],
)
def test_it_is_an_argument_of_sn_and_a_number(norm, message):
    with pytest.raises(InputError, match=message):
        sn_mm.switch_norm_cfg(Config({'model': {}}), norm)
