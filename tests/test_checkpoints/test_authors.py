"""The authors' checkpoints give, converted, what their own networks give.

Their networks are written here from the paper and from what is known about their layers: one
unbiased instance variance feeds all scopes, parameters are (1, C, 1, 1), running statistics
(1, C, 1), there is no counter of batches.
"""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import sn_mm  # noqa: F401  (registers SN)
from sn_mm.checkpoints.authors import TOOLBOXES, convert

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class TheirNorm(nn.Module):
    def __init__(self, channels: int, using_bn: bool) -> None:
        super().__init__()
        scopes = 3 if using_bn else 2
        self.weight = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.3)
        self.mean_weight = nn.Parameter(torch.randn(scopes))
        self.var_weight = nn.Parameter(torch.randn(scopes))
        if using_bn:
            self.register_buffer('running_mean', torch.randn(1, channels, 1) * 0.3)
            self.register_buffer('running_var', torch.rand(1, channels, 1) + 0.5)

    def forward(self, x):
        flat = x.flatten(2)
        mean_in = flat.mean(-1, keepdim=True)
        var_in = flat.var(-1, keepdim=True)  # unbiased
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
        means, variances = [mean_in, mean_ln], [var_in, var_ln]
        if len(self.mean_weight) == 3:
            means.append(self.running_mean)
            variances.append(self.running_var)
        mean = sum(p * m for p, m in zip(self.mean_weight.softmax(0), means))
        var = sum(q * v for q, v in zip(self.var_weight.softmax(0), variances))
        return ((flat - mean) / (var + 1e-5).sqrt()).view_as(x) * self.weight + self.bias


class TheirBlock(nn.Module):
    def __init__(self, inner: int, planes: int, stride: int, deep: bool, using_bn: bool) -> None:
        super().__init__()
        outer = planes * 4 if deep else planes
        self.count = 3 if deep else 2
        kernels = (1, 3, 1) if deep else (3, 3)
        widths = (inner, planes, planes, outer) if deep else (inner, planes, outer)
        for i, kernel in enumerate(kernels, 1):
            step = stride if i == self.count - 1 else 1
            conv = nn.Conv2d(*widths[i - 1 : i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f'conv{i}', conv)
            self.add_module(f'sn{i}', TheirNorm(widths[i], using_bn))
        self.downsample = None
        if stride > 1 or inner != outer:
            conv = nn.Conv2d(inner, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, TheirNorm(outer, using_bn))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f'sn{i}')(getattr(self, f'conv{i}')(y))
            y = y.relu() if i < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class TheirResNet(nn.Module):
    def __init__(self, depth: int, using_bn: bool = True, width: int = 8) -> None:
        super().__init__()
        deep = depth >= 50
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.sn1 = TheirNorm(width, using_bn)
        inner = width
        for stage, count in enumerate(DEPTHS[depth]):
            planes, blocks = width * 2**stage, []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(TheirBlock(inner, planes, stride, deep, using_bn))
                inner = planes * 4 if deep else planes
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(inner, 10)

    @torch.no_grad()
    def forward(self, x):
        """The four stages' outputs and the classifier's."""
        x = nn.functional.max_pool2d(self.sn1(self.conv1(x)).relu(), 3, 2, 1)
        stages = []
        for stage in range(1, 5):
            x = getattr(self, f'layer{stage}')(x)
            stages.append(x)
        return [*stages, self.fc(x.mean((2, 3)))]


def as_published(network: nn.Module, naming: str) -> dict[str, torch.Tensor]:
    weights = dict(network.state_dict())
    if naming == 'classification':
        return {f'module.{key}': tensor for key, tensor in weights.items()}
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith('fc.')}
    if naming == 'segmentation':
        return weights
    renamed = {}
    for key, tensor in weights.items():
        stage = re.match(r'layer(\d)\.(.*)', key)
        name = f'res{int(stage[1]) + 1}.{stage[2]}' if stage else f'res1.{key}'
        renamed[f'Conv_Body.conv_body.{name}'] = tensor
    return renamed


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


@torch.no_grad()
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
    with pytest.raises(ValueError, match=message):
        convert(broken(change), 'mmpretrain')


def test_a_preactivation_network_is_refused():
    def normalise_inputs(weights):
        for key in list(weights):
            if key.endswith('sn1.weight') and 'layer' in key:
                inner = weights[key.replace('sn1', 'conv1')].shape[1]
                weights[key] = torch.ones(1, inner, 1, 1)

    with pytest.raises(ValueError, match=r'pre-activation ResNet \(v2\), and neither'):
        convert(broken(normalise_inputs), 'mmpretrain')


def test_an_unknown_toolbox_is_refused():
    with pytest.raises(ValueError, match=f'one of {", ".join(TOOLBOXES)}, got'):
        convert({}, 'detectron')
