"""The authors' checkpoints give, converted, what their own networks give."""

from __future__ import annotations

import pytest
import torch
from authors import TheirNorm, TheirResNet, as_published, train
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import sn_mm  # noqa: F401  (registers SN)
from sn_mm.checkpoints.authors import TOOLBOXES, convert
from sn_mm.errors import InputError


def build(toolbox: str, config: dict, weights: dict[str, torch.Tensor]) -> nn.Module:
    registry = pytest.importorskip(f'{toolbox}.registry').MODELS
    if toolbox == 'mmpretrain':
        channels = weights['head.fc.weight'].shape[1]
        head = {'type': 'LinearClsHead', 'num_classes': 10, 'in_channels': channels}
        neck = {'type': 'GlobalAveragePooling'}
        config = {'type': 'ImageClassifier', 'backbone': config, 'neck': neck, 'head': head}
    init_default_scope(toolbox)
    network = registry.build(config)
    load_state_dict(network, weights, strict=True)
    network.double().eval()  # mmdet's ResNet returns None
    return network


def assert_same(ours, theirs):
    """In float64: random networks of 150 layers amplify the rounding of float32."""
    for got, wanted in zip(ours, theirs):
        torch.testing.assert_close(got, wanted, atol=1e-9 * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize('using_bn', [True, False], ids=['in+ln+bn', 'in+ln'])
@pytest.mark.parametrize(
    ('depth', 'naming', 'toolbox'),
    [
        (18, 'classification', 'mmdet'),
        (34, 'segmentation', 'mmseg'),
        (50, 'detection', 'mmdet'),
        (50, 'classification', 'mmseg'),
        (101, 'segmentation', 'mmseg'),
        (152, 'detection', 'mmdet'),
    ],
)
@torch.no_grad()
def test_converted_network_gives_their_outputs(depth, naming, toolbox, using_bn):
    theirs = TheirResNet(depth, using_bn).eval()
    converted = convert(as_published(theirs, naming), toolbox)
    assert converted.naming == naming
    assert converted.backbone['depth'] == depth
    x = torch.randn(2, 3, 64, 64).double()
    assert_same(build(toolbox, converted.backbone, converted.state_dict)(x), theirs.double()(x))


@pytest.mark.parametrize('using_bn', [True, False], ids=['in+ln+bn', 'in+ln'])
@pytest.mark.parametrize('depth', [18, 50, pytest.param(152, marks=pytest.mark.slow)])
@torch.no_grad()
def test_in_float32_outputs_are_theirs_to_1e_5(depth, using_bn):
    """Relative to the largest output; at depth 152 their own rounding alone is 1.5e-5.

    Against their network in float64, ours is no further than theirs in float32 is.
    """
    x = torch.randn(2, 3, 96, 96) + torch.randn(2, 3, 1, 1)
    theirs = train(TheirResNet(depth, using_bn, width=16), x)
    converted = convert(as_published(theirs, 'classification'), 'mmdet')
    ours = build('mmdet', converted.backbone, converted.state_dict).float()
    got, wanted = ours(x), theirs(x)
    for a, b, exact in zip(got, wanted, theirs.double()(x.double())):
        largest = exact.abs().max()
        assert largest > 1
        assert (a - b).abs().max() <= (2e-5 if depth == 152 else 1e-5) * largest
        noise = (b - exact).abs().max()
        assert (a - exact).abs().max() <= 1.5 * noise + 1e-6 * largest


@torch.no_grad()
def test_converted_sparse_network_gives_their_outputs():
    theirs = TheirResNet(18).eval()
    for module in theirs.modules():
        if isinstance(module, TheirNorm):
            module.become_sparse(0.6)
    weights = as_published(theirs, 'classification')
    converted = convert(weights, 'mmdet')
    assert converted.backbone['norm_cfg']['type'] == 'SSN'
    x = torch.randn(2, 3, 64, 64).double()
    network = build('mmdet', converted.backbone, converted.state_dict)
    with torch.no_grad():
        assert_same(network(x), theirs.double()(x))
    assert network.bn1.var_fixed.argmax() == theirs.sn1.var_weight.argmax()
    assert network.bn1.var_fixed.any() and not network.bn1.mean_fixed.any()
    del weights['module.sn1.radius']
    with pytest.raises(InputError, match='sn1 must have .radius'):
        convert(weights, 'mmdet')


def test_the_correction_matters():
    theirs = TheirResNet(18).eval()
    converted = convert(as_published(theirs, 'classification'), 'mmdet')
    assert converted.backbone['norm_cfg'].pop('correction') == 1
    x = torch.randn(2, 3, 64, 64).double()
    with pytest.raises(AssertionError):
        assert_same(build('mmdet', converted.backbone, converted.state_dict)(x), theirs.double()(x))


@pytest.mark.parametrize('depth', [18, 50])
@torch.no_grad()
def test_mmpretrain_takes_the_classifier_too(depth):
    theirs = TheirResNet(depth).eval()
    converted = convert(as_published(theirs, 'classification'), 'mmpretrain')
    x = torch.randn(2, 3, 64, 64).double()
    ours = build('mmpretrain', converted.backbone, converted.state_dict)
    assert_same([ours(x)], theirs.double()(x)[-1:])


def test_what_is_left_out_is_named():
    published = as_published(TheirResNet(18), 'classification')
    assert convert(published, 'mmseg').left_out == {
        'a classifier': ['module.fc.weight', 'module.fc.bias']
    }
    assert convert(published, 'mmpretrain').left_out == {}
    published = as_published(TheirResNet(18), 'detection')
    rest = ['Conv_Body.conv_top.weight', 'RPN.RPN_conv.weight', 'Box_Outs.cls_score.bias']
    converted = convert({**published, **dict.fromkeys(rest, torch.ones(1))}, 'mmdet')
    assert converted.left_out == {"a detector's neck or head": rest}


def test_a_c4_detector_keeps_its_last_stage_in_the_box_head():
    published = as_published(TheirResNet(50), 'detection')
    c4 = {
        key.replace('Conv_Body.conv_body.res5', 'Box_Head.res5').replace('.conv_body', ''): tensor
        for key, tensor in published.items()
    }
    wanted = convert(published, 'mmdet').state_dict
    got = convert({f'module.{key}': tensor for key, tensor in c4.items()}, 'mmdet').state_dict
    assert wanted.keys() == got.keys() and all((wanted[k] == got[k]).all() for k in wanted)


def test_the_counter_they_lack_is_zero():
    state_dict = convert(as_published(TheirResNet(18), 'segmentation'), 'mmdet').state_dict
    assert state_dict['layer4.0.downsample.1.num_batches_tracked'] == 0
    without_bn = convert(as_published(TheirResNet(18, using_bn=False), 'segmentation'), 'mmdet')
    assert not any('running' in key or 'tracked' in key for key in without_bn.state_dict)
    assert without_bn.backbone['norm_cfg'] == {
        'type': 'SN',
        'correction': 1,
        'normalizers': ('in', 'ln'),
    }


def broken(change) -> dict[str, torch.Tensor]:
    weights = as_published(TheirResNet(18), 'classification')
    change(weights)
    return weights


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w.pop('module.layer2.0.sn1.bias'), r'missing: layer2\.0\.sn1\.bias'),
        (lambda w: w.pop('module.conv1.weight'), r'missing: conv1\.weight'),
        (lambda w: w.pop('module.fc.bias'), r'missing: fc\.bias'),
        (lambda w: w.update({'module.conv2.weight': torch.ones(1)}), r'unknown: module\.conv2'),
        (lambda w: w.update({'conv1.weight': torch.ones(1)}), 'the same weight'),
        (
            lambda w: w.update({'module.layer1.0.sn1.weight': torch.ones(1, 8, 1)[:, :4]}),
            r'module\.layer1\.0\.sn1\.weight has shape \(1, 4, 1\) where \(8,\) is needed',
        ),
        (
            lambda w: w.update({'module.layer3.1.sn2.var_weight': torch.ones(2)}),
            r'sn2\.var_weight has shape \(2,\) where \(3,\)',
        ),
        (
            lambda w: [w.pop(key) for key in list(w) if 'layer4.1.' in key],
            r'\(2, 2, 2, 1\) basic blocks .* depth 18, 34, 50, 101, 152',
        ),
        (
            lambda w: [w.update({k.replace('sn', 'bn'): w.pop(k)}) for k in list(w)],
            r'unknown: module\.bn1\.weight.*and \d+ more; missing: sn1\.weight',
        ),
        (
            lambda w: [w.pop(key) for key in list(w) if key.endswith(('_weight', '_var'))],
            'no SN layer',
        ),
        (lambda w: w.update({'module.sn1.mean_weight': torch.ones(4)}), 'mix 4 scopes'),
    ],
)
def test_what_does_not_fit_is_refused_and_named(change, message):
    with pytest.raises(InputError, match=message):
        convert(broken(change), 'mmpretrain')


def test_a_preactivation_network_is_refused():
    def normalize_inputs(weights):
        for key in list(weights):
            if key.endswith('sn1.weight') and 'layer' in key:
                inner = weights[key.replace('sn1', 'conv1')].shape[1]
                weights[key] = torch.ones(1, inner, 1, 1)

    with pytest.raises(InputError, match=r'pre-activation ResNet \(v2\), and neither'):
        convert(broken(normalize_inputs), 'mmpretrain')


def test_an_unknown_toolbox_is_refused():
    with pytest.raises(InputError, match=f'one of {", ".join(TOOLBOXES)}, got'):
        convert({}, 'detectron')
