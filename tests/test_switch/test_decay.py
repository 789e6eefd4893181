"""Weight decay and the importance of SN in switched configs."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

import sn_mm
from sn_mm.switch.decay import IMPORTANCE, leave_importance_out

SGD = {'type': 'SGD', 'lr': 0.1, 'weight_decay': 1e-4}


def config(optimizer: dict = SGD, **wrapper: object) -> Config:
    return Config({'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': optimizer, **wrapper}})


def decays(cfg: Config) -> dict[str, float]:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), sn_mm.SwitchNorm2d(4))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: g['weight_decay'] for g in optimizer.param_groups for p in g['params']}


@pytest.mark.parametrize('optimizer', [SGD, {**SGD, 'type': 'AdamW'}], ids=str)
def test_only_the_importance_is_left_out(optimizer):
    cfg = config(optimizer)
    before = decays(cfg)
    assert all(before.values())
    (note,) = leave_importance_out(cfg)
    assert 'no weight decay on the importance' in note
    assert decays(cfg) == {**before, '1.mean_weight': 0.0, '1.var_weight': 0.0}
    assert leave_importance_out(cfg) == []  # a second switch


@pytest.mark.parametrize(
    'cfg',
    [
        config({'type': 'SGD', 'lr': 0.1}),
        config({'type': 'Adam', 'lr': 0.1}),
        config(paramwise_cfg={'norm_decay_mult': 0.0}),
        Config({}),
    ],
    ids=['none', 'Adam', 'norms', 'no optimizer'],
)
def test_a_config_without_decay_on_norms_stays(cfg):
    before = cfg.to_dict()
    assert leave_importance_out(cfg) == []
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    ('wrapper', 'whose'),
    [
        ({'paramwise_cfg': {'custom_keys': {'backbone': {'lr_mult': 0.1}}}}, 'custom_keys'),
        ({'constructor': 'LayerDecayOptimizerConstructor'}, 'constructor'),
    ],
)
def test_rules_of_the_config_stay_and_are_named(wrapper, whose):
    cfg = config(**wrapper)
    before = cfg.to_dict()
    (note,) = leave_importance_out(cfg)
    assert whose in note and all(name in note for name in IMPORTANCE)
    assert cfg.to_dict() == before


@pytest.mark.parametrize('norms', [{}, {'norm_decay_mult': 0.0}], ids=['', 'norms'])
def test_a_learning_rate_of_the_importance_stays(norms):
    """MMEngine has full weight decay on what a custom key names, unless the key says otherwise."""
    faster = {name: {'lr_mult': 30} for name in IMPORTANCE}
    cfg = config(paramwise_cfg={**norms, 'custom_keys': faster})
    (note,) = leave_importance_out(cfg)
    assert 'no weight decay on the importance' in note
    found = decays(cfg)
    assert found['1.mean_weight'] == found['1.var_weight'] == 0.0 and found['0.weight']
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.mean_weight.lr_mult == 30
    assert leave_importance_out(cfg) == []


def test_the_switch_writes_it_and_another_norm_does_not():
    pytest.importorskip('mmdet')
    for kind, written in (('SN', True), ('BN', False)):
        cfg = Config({**config().to_dict(), 'default_scope': 'mmdet'})
        cfg.model = {'type': 'mmdet.ResNet', 'depth': 18, 'norm_cfg': {'type': 'BN'}}
        sn_mm.switch_norm_cfg(cfg, {'type': kind})
        assert ('paramwise_cfg' in cfg.optim_wrapper) == written
