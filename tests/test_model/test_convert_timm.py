"""convert_switch_norm on timm's models, most of which drop and activate inside of their norms."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm, convert_switch_norm, revert_switch_norm
from sn_mm.errors import InputError
from sn_mm.norm_act import SwitchNormAct

timm = pytest.importorskip('timm', exc_type=ImportError)
layers = timm.layers


def put_all_weight_on(norm: SwitchNorm, scope: str) -> None:
    """The softmax puts exactly 1 on ``scope``."""
    chosen = [0.0 if name == scope else -1e4 for name in norm.normalizers]
    for logits in (norm.mean_weight, norm.var_weight):
        logits.data.copy_(torch.tensor(chosen))


def randomize(norm: nn.Module) -> nn.Module:
    """Weights and statistics as after training, none of them at its default."""
    for name, value in norm.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if name != 'bias' else value.normal_()
    return norm


@pytest.mark.parametrize(
    ('norm', 'scope', 'kind'),
    (
        (layers.BatchNormAct2d(6, act_layer=nn.SiLU, drop_layer=nn.Dropout), 'bn', SwitchNormAct),
        (layers.BatchNormAct2d(6, apply_act=False), 'bn', SwitchNormAct),
        (layers.GroupNormAct(6, 1, drop_layer=nn.Dropout), 'ln', SwitchNormAct),
        (layers.GroupNorm1Act(6, act_layer=nn.GELU), 'ln', SwitchNormAct),
        (layers.GroupNorm(6, 1), 'ln', SwitchNorm),
        (layers.GroupNorm1(6), 'ln', SwitchNorm),
    ),
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else '',
)
@pytest.mark.parametrize('training', (True, False))
def test_a_norm_keeps_its_function_its_drop_and_its_activation(norm, scope, kind, training):
    norm = randomize(copy.deepcopy(norm)).train(training)
    x = torch.randn(4, 6, 5, 5)
    torch.manual_seed(0)
    want = norm(x)
    state = copy.deepcopy(norm.state_dict())
    new = convert_switch_norm(nn.Sequential(norm))[0]
    put_all_weight_on(new, scope)
    torch.manual_seed(0)
    torch.testing.assert_close(new(x), want, rtol=1e-4, atol=1e-5)

    assert type(new) is kind and new.weight is norm.weight
    if kind is SwitchNormAct:
        assert new.drop is norm.drop and new.act is norm.act
    missing = new.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) >= {'mean_weight', 'var_weight'}


def test_sync_batch_norm_with_activation_is_converted():
    model = layers.convert_sync_batchnorm(nn.Sequential(layers.BatchNormAct2d(6)))
    assert type(model[0]) is layers.SyncBatchNormAct
    act = model[0].act
    new = convert_switch_norm(model)[0]
    assert type(new) is SwitchNormAct and new.act is act
    assert new(torch.randn(2, 6, 4, 4)).min() == 0


def test_a_norm_of_timm_that_does_more_is_left_with_a_warning():
    split = layers.convert_splitbn_model(nn.Sequential(nn.BatchNorm2d(6)), 2)[0]
    with pytest.warns(UserWarning, match='^1 norms are not converted: 0: SplitBatchNorm2d left'):
        model = convert_switch_norm(nn.Sequential(split, layers.BatchNormAct2d(6)))
    assert model[0] is split and type(model[1]) is SwitchNormAct


def test_the_way_back_leaves_a_layer_with_an_activation():
    lines: list[str] = []
    model = convert_switch_norm(nn.Sequential(layers.BatchNormAct2d(6)), init_importance='bn')
    revert_switch_norm(model, 0.01, report=lines.append)
    assert lines[0] == '0: SwitchNormAct left, a subclass'


@pytest.mark.parametrize(
    ('name', 'norms'),
    (
        ('mobilenetv3_small_100', 34),
        ('resnet18', 20),
        ('hrnet_w18_small', 91),
        ('efficientnet_b0', 49),
        ('regnety_002', 44),
        ('densenet121', 121),
        ('resnetv2_50', 49),
        ('repvgg_a0', 61),
        ('tresnet_m', 60),
        ('mobileone_s0', 226),
    ),
)
def test_a_model_is_converted_whole_and_takes_its_checkpoint(name, norms):
    model = timm.create_model(name)
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    want = model.eval()(x)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        model = convert_switch_norm(model)
    new = [module for module in model.modules() if isinstance(module, SwitchNorm)]
    assert len(new) == norms
    incompatible = model.load_state_dict(state, strict=False)
    missing = {key.rpartition('.')[2] for key in incompatible.missing_keys}
    assert missing == {'mean_weight', 'var_weight'} and not incompatible.unexpected_keys

    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for norm in new for p in norm.parameters())
    model.load_state_dict(state, strict=False)
    for norm in new:
        put_all_weight_on(norm, 'bn')
    torch.testing.assert_close(model.eval()(x), want, rtol=0, atol=1e-4 * float(want.abs().max()))


def test_features_of_the_stages_are_those_of_the_converted_model():
    model = timm.create_model('mobilenetv3_small_100', features_only=True)
    model = convert_switch_norm(model)
    features = model(torch.randn(2, 3, 64, 64))
    assert [f.shape[-1] for f in features] == [32, 16, 8, 4, 2]
    assert all(f.isfinite().all() for f in features)


def test_a_model_of_layer_norms_has_nothing_to_convert():
    with pytest.raises(InputError, match='^no norm to convert: the model has no BatchNorm'):
        convert_switch_norm(timm.create_model('convnext_atto'))
