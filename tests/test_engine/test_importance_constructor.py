"""The importance of SN in a parameter group of its own, whatever builds the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from torch import nn

import sn_mm
from sn_mm.engine.importance_constructor import LR_MULT
from sn_mm.errors import InputError
from sn_mm.norm_act import SwitchNormAct

OURS = 'sn_mm.ImportanceOptimWrapperConstructor'
SGD = {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.01}


def model(norm: Any = sn_mm.SwitchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), norm(4), nn.Linear(4, 4))


def build(net: nn.Module, scope: str = 'mmengine', constructor: str = OURS, **paramwise: Any):
    """Parameter -> its group, by name; the groups; the wrapper."""
    cfg = {'optimizer': SGD, 'constructor': constructor, 'paramwise_cfg': paramwise}
    with DefaultScope.overwrite_default_scope(scope):
        wrapper = build_optim_wrapper(net, cfg)
    names = {id(p): name for name, p in net.named_parameters()}
    groups = wrapper.optimizer.param_groups
    return {names[id(p)]: group for group in groups for p in group['params']}, wrapper


def test_one_last_group_without_decay_at_the_learning_rate_given():
    net = model()
    norm = net[1]
    found, wrapper = build(net, importance={'lr_mult': 30})
    assert net[1] is norm and set(found) == {name for name, _ in net.named_parameters()}
    last = wrapper.optimizer.param_groups[-1]
    assert found['1.mean_weight'] is found['1.var_weight'] is last and len(last['params']) == 2
    assert (last['lr'], last['weight_decay'], last[LR_MULT]) == (pytest.approx(3), 0, 30)
    assert build(model())[0]['1.mean_weight'][LR_MULT] is None
    assert build(model(sn_mm.SparseSwitchNorm2d))[0]['1.mean_weight'][LR_MULT] == 1


@pytest.mark.parametrize(
    'paramwise',
    [{}, {'norm_decay_mult': 0.0, 'bias_lr_mult': 2.0}, {'custom_keys': {'1': {'lr_mult': 0.5}}}],
    ids=str,
)
def test_all_else_is_as_with_batch_norm(paramwise):
    expected, _ = build(
        model(nn.BatchNorm2d), constructor='DefaultOptimWrapperConstructor', **paramwise
    )
    found, _ = build(model(), **paramwise)
    for name, group in expected.items():
        for key in ('lr', 'weight_decay'):
            assert found[name][key] == group[key], name


def test_custom_keys_of_the_importance_hold_alone():
    found, _ = build(model(), custom_keys={'mean_weight': {'lr_mult': 0.5}})
    assert found['1.mean_weight']['lr'] == 0.05 and found['1.var_weight']['lr'] == 0.1


def test_frozen_and_shared_layers_and_parameters_of_an_activation():
    layers = sn_mm.SwitchNorm2d(4), sn_mm.SwitchNorm2d(4), SwitchNormAct(4, act=nn.PReLU())
    net = nn.Sequential(*layers)
    net[1].requires_grad_(False)
    net.append(nn.Sequential(net[0]))
    found, wrapper = build(net, bypass_duplicate=True)
    assert set(found) == {n for n, p in net.named_parameters() if p.requires_grad}
    assert '2.act.weight' in found and len(wrapper.optimizer.param_groups[-1]['params']) == 4


def test_a_layer_alone_and_a_model_without_sn():
    layer = sn_mm.SwitchNorm2d(4)
    assert len(build(layer)[0]) == 4
    found, _ = build(model(nn.BatchNorm2d), importance={'lr_mult': 30})
    assert {group['lr'] for group in found.values()} == {0.1}


def test_a_failing_constructor_leaves_the_model_as_it_was():
    net = model()
    before = list(net)
    with pytest.raises(TypeError):
        build(net, custom_keys=3)
    assert list(net) == before


def test_mmaction_has_its_rules_for_norms():
    """Its constructor for TSM refuses classes that it does not list, and goes by BatchNorm's."""
    pytest.importorskip('mmaction')
    import mmaction.engine  # noqa: F401

    settings = {'fc_lr5': True, 'importance': {'constructor': 'TSMOptimWrapperConstructor'}}
    found, wrapper = build(model(), 'mmaction', **settings)
    assert found['1.weight'] is found['1.bias']
    assert (found['1.weight']['weight_decay'], found['0.weight']['weight_decay']) == (0, 0.01)
    assert found['1.mean_weight'] is wrapper.optimizer.param_groups[-1]


def test_mmsegmentations_layer_wise_decay_which_names_its_parameters():
    pytest.importorskip('mmseg')

    class ConvNeXt(nn.Sequential):
        """A backbone, by the name that the constructor looks for."""

    net = nn.Sequential()
    net.backbone = ConvNeXt(model())
    inner = {'constructor': 'LearningRateDecayOptimizerConstructor'}
    settings = {'decay_rate': 0.9, 'decay_type': 'stage_wise', 'num_layers': 6}
    found, wrapper = build(net, 'mmseg', importance=inner, **settings)
    assert set(found) == {name for name, _ in net.named_parameters()}
    assert found['backbone.0.1.weight']['weight_decay'] == 0
    names = ['backbone.0.1.mean_weight', 'backbone.0.1.var_weight']
    assert wrapper.optimizer.param_groups[-1]['param_names'] == names


def test_a_constructor_that_goes_by_class_as_mmyolos():
    class ByClass:
        def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None) -> None:
            self.lr = optim_wrapper_cfg['optimizer']['lr']

        def __call__(self, net: nn.Module) -> OptimWrapper:
            norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
            params = [p for m in norms for p in m.parameters()]
            return OptimWrapper(torch.optim.SGD(params, self.lr))

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=ByClass, force=True)
    found, _ = build(model(), importance={'constructor': 'ByClass'})
    assert set(found) == {'1.weight', '1.bias', '1.mean_weight', '1.var_weight'}


@pytest.mark.parametrize(
    ('importance', 'message'),
    [
        ({'lr': 1}, 'takes constructor, lr_mult, got lr'),
        ({'lr_mult': -1}, 'lr_mult must be a number >= 0, got -1'),
        (30, 'importance must be a dictionary, got 30'),
    ],
)
def test_wrong_settings_are_named(importance, message):
    with pytest.raises(InputError, match=message):
        build(model(), importance=importance)
