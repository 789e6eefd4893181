"""SN in MMEngine, MMCV, MMDetection and MMSegmentation: names, and how each tool treats it."""

import copy
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import sn_mm
from sn_mm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from sn_mm.cli.config import read_config

ROOT = Path(__file__).resolve().parents[1]
SN = {'type': 'SN'}
BN = {'type': 'BN'}
LAYERS = {'SN': SwitchNorm2d, 'SN1d': SwitchNorm1d, 'SN2d': SwitchNorm2d, 'SN3d': SwitchNorm3d}
PARAMETERS = {'weight', 'bias', 'mean_weight', 'var_weight'}


def run_fresh(code, tmp_path):
    """Runs ``code`` in a Python that has imported nothing yet."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(
        [sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def resnet(norm_cfg, toolbox='mmdet', depth=18, base_channels=8, **kwargs):
    """A ready-made ResNet, small."""
    cfg = {'type': f'{toolbox}.ResNet', 'depth': depth, 'base_channels': base_channels}
    cfg = {**cfg, 'stem_channels': base_channels, 'norm_cfg': norm_cfg, '_scope_': toolbox}
    return MODELS.build({**cfg, **kwargs})


def norms(model, kind=SwitchNorm):
    return {name: m for name, m in model.named_modules() if isinstance(m, kind)}


def randomize(model):
    """Weights and statistics as after training, none of them at its default."""
    with torch.no_grad():
        for norm in norms(model, nn.modules.batchnorm._NormBase).values():
            for p in norm.parameters(recurse=False):
                p.uniform_(0.5, 1.5)
            if norm.running_mean is not None:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 1.5)
    return model


def assert_same_outputs(model, other, x):
    for got, want in zip(model(x), other(x)):
        torch.testing.assert_close(got, want)


# --- names


@pytest.mark.parametrize('scope', ('mmengine', 'mmdet', 'mmseg'))
@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('prefix', ('', 'sn_mm.', 'mmengine.'))
def test_names_in_every_scope(scope, name, prefix):
    from mmcv.cnn import build_norm_layer

    with DefaultScope.overwrite_default_scope(scope):
        module_name, layer = build_norm_layer({'type': prefix + name, 'sync': False}, 8, postfix=1)
    assert module_name == 'bn1'
    assert type(layer) is LAYERS[name] and layer.num_features == 8 and layer.sync is False


@pytest.mark.parametrize('type_', ('SN', 'sn_mm.SN', 'sn_mm.SwitchNorm2d', SwitchNorm2d))
def test_models_build(type_):
    layer = MODELS.build({'type': type_, 'num_features': 8, 'normalizers': ['in', 'ln']})
    assert type(layer) is SwitchNorm2d and layer.normalizers == ('in', 'ln')


def test_models_build_through_the_toolboxes_registries():
    import mmdet.registry
    import mmseg.registry

    for models in (mmdet.registry.MODELS, mmseg.registry.MODELS):
        assert type(models.build({'type': 'SN1d', 'num_features': 8})) is SwitchNorm1d


def test_bad_arguments_in_a_config_are_named():
    with pytest.raises(ValueError, match='normalizers'):
        MODELS.build({'type': 'SN', 'num_features': 8, 'normalizers': ['in', 'gn']})


def test_custom_imports_registers_the_names(tmp_path):
    pytest.importorskip('mmcv')
    (tmp_path / 'config.py').write_text(
        "custom_imports = dict(imports=['sn_mm'])\nnorm_cfg = dict(type='SN', normalizers=['bn'])\n"
    )
    code = """
import sys
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmcv.cnn import ConvModule, build_norm_layer

names = ('SN', 'SN1d', 'SN2d', 'SN3d')
assert not any(name in MODELS.module_dict for name in names) and 'sn_mm' not in sys.modules
cfg = Config.fromfile('config.py')
for scope in ('mmengine', 'mmdet', 'mmseg'):
    with DefaultScope.overwrite_default_scope(scope):
        for name in names:
            assert type(build_norm_layer(dict(type=name), 8)[1]).__module__ == 'sn_mm.layer', name
        conv = ConvModule(3, 8, 1, norm_cfg=cfg.norm_cfg)
        assert type(conv.norm).__name__ == 'SwitchNorm2d' and conv.norm.normalizers == ('bn',)
"""
    run_fresh(code, tmp_path)


@pytest.mark.slow
def test_scoped_name_needs_no_import_line(tmp_path):
    (tmp_path / 'config.py').write_text("norm_cfg = dict(type='sn_mm.SN', sync=False)\n")
    code = """
import sys
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmcv.cnn import ConvModule

cfg = Config.fromfile('config.py')
assert 'sn_mm' not in sys.modules
for scope in (None, 'mmdet', 'mmseg'):
    with DefaultScope.overwrite_default_scope(scope):
        conv = ConvModule(3, 8, 1, norm_cfg=cfg.norm_cfg)
        assert type(conv.norm).__name__ == 'SwitchNorm2d' and conv.norm.sync is False
resnet = MODELS.build(dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8,
                           norm_cfg=cfg.norm_cfg, _scope_='mmdet'))
assert type(resnet.bn1).__name__ == 'SwitchNorm2d'
"""
    run_fresh(code, tmp_path)


def test_import_needs_mmengine_only(tmp_path):
    code = """
import sys
import sn_mm
from mmengine.registry import MODELS

assert 'SN' in MODELS.module_dict
assert not {'mmcv', 'mmdet', 'mmseg'} & {name.partition('.')[0] for name in sys.modules}
"""
    run_fresh(code, tmp_path)


def test_layer_works_where_mmengine_is_absent(tmp_path):
    code = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'numpy'):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
try:
    import mmengine
except ModuleNotFoundError:
    pass
else:
    raise SystemExit('mmengine was to be absent')

import torch
import sn_mm

model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
model = sn_mm.convert_switch_norm(model)
x = torch.randn(2, 3, 8, 8)
model(x).square().sum().backward()
assert model[1].mean_weight.grad is not None and model.eval()(x).isfinite().all()
"""
    run_fresh(code, tmp_path)


def test_reloading_keeps_the_registration():
    registry = importlib.import_module('sn_mm.registry')
    child = MODELS.children['sn_mm']
    importlib.reload(registry)
    importlib.reload(sn_mm)
    assert registry.MODELS is child is MODELS.children['sn_mm']
    for prefix in ('', 'sn_mm.'):
        for name, layer in LAYERS.items():
            assert MODELS.get(prefix + name) is layer


@pytest.mark.slow
def test_importing_anew_registers_the_new_classes(tmp_path):
    code = """
import sys
import sn_mm
from mmengine.registry import MODELS

for name in [name for name in sys.modules if name.partition('.')[0] == 'sn_mm']:
    del sys.modules[name]
old = sn_mm.SwitchNorm2d
import sn_mm

assert sn_mm.SwitchNorm2d is not old
assert MODELS.get('SN') is MODELS.get('sn_mm.SN') is sn_mm.SwitchNorm2d

class Other:
    pass

MODELS.register_module('SN', force=True, module=Other)
del sys.modules['sn_mm.registry']
try:
    import sn_mm.registry
except KeyError as error:
    assert 'SN is already registered' in str(error)
else:
    raise SystemExit("another package's SN was overwritten")
"""
    run_fresh(code, tmp_path)


# --- in the toolboxes' modules


def test_conv_module():
    from mmcv.cnn import ConvModule

    conv = ConvModule(3, 8, 3, padding=1, norm_cfg={'type': 'SN', 'eps': 1e-3})
    assert conv.norm_name == 'bn' and conv.norm is conv.bn and conv.norm.eps == 1e-3
    assert conv.conv.bias is None  # as before any norm
    y = conv(torch.randn(2, 3, 8, 8))  # through an in-place ReLU
    assert y.shape == (2, 8, 8, 8) and y.min() == 0
    y.sum().backward()
    assert all(p.grad is not None for p in conv.parameters())


@pytest.mark.parametrize('toolbox', ('mmdet', 'mmseg'))
def test_resnet_has_the_names_of_batch_norm(toolbox):
    with_bn, with_sn = (resnet(cfg, toolbox, depth=50).state_dict() for cfg in (BN, SN))
    assert set(with_bn) < set(with_sn)
    added = set(with_sn) - set(with_bn)
    assert {name.rpartition('.')[2] for name in added} == {'mean_weight', 'var_weight'}
    assert len(added) == 2 * 53
    assert 'bn1.mean_weight' in added and 'layer1.0.downsample.1.var_weight' in added


@pytest.mark.parametrize('toolbox', ('mmdet', 'mmseg'))
def test_zero_init_residual(toolbox):
    model = resnet(SN, toolbox, zero_init_residual=True)
    model.init_weights()
    assert model.layer1[0].bn2.weight.abs().max() == 0
    assert model.layer1[0].bn1.weight.tolist() == [1.0] * 8
    assert model.layer1[0].bn2.mean_weight.tolist() == [1.0] * 3


def test_requires_grad_false_freezes_all_four():
    model = resnet({'type': 'SN', 'requires_grad': False})
    for norm in norms(model).values():
        given = {name: p.requires_grad for name, p in norm.named_parameters()}
        assert given == dict.fromkeys(PARAMETERS, False)
    assert model.conv1.weight.requires_grad


@pytest.mark.parametrize(
    ('toolbox', 'deep_stem'), (('mmdet', False), ('mmdet', True), ('mmseg', False), ('mmseg', True))
)
def test_frozen_stages_freeze_and_norm_eval_does_not(toolbox, deep_stem):
    """deep_stem is mmseg's ResNetV1c, the one in most of its configs."""
    kwargs = {'frozen_stages': 1, 'norm_eval': True, 'deep_stem': deep_stem}
    model = resnet(SN, toolbox, **kwargs)
    model.train()
    frozen = {n: m for n, m in norms(model).items() if n.startswith(('bn1', 'stem', 'layer1'))}
    others = {n: m for n, m in norms(model).items() if n not in frozen}
    assert len(frozen) == (7 if deep_stem else 5) and len(others) == 15

    for norm in frozen.values():
        assert not norm.training and not any(p.requires_grad for p in norm.parameters())
    for norm in others.values():
        assert norm.training and all(p.requires_grad for p in norm.parameters())
    bn_model = resnet(BN, toolbox, **kwargs)
    bn_model.train()
    assert not any(m.training for m in norms(bn_model, _BatchNorm).values())

    sum(y.square().mean() for y in model(torch.randn(2, 3, 64, 64))).backward()
    for norm in frozen.values():
        assert norm.num_batches_tracked == 0 and norm.weight.grad is None
    for norm in others.values():
        assert norm.num_batches_tracked == 1 and norm.mean_weight.grad is not None
    model.eval()
    assert not any(m.training for m in norms(model).values())


def test_ready_made_resnet_v1c():
    cfg = {'type': 'mmseg.ResNetV1c', 'depth': 18, 'norm_cfg': SN, 'frozen_stages': 1}
    model = MODELS.build({**cfg, 'base_channels': 8, 'stem_channels': 8, '_scope_': 'mmseg'})
    model.train()
    assert len(norms(model.stem)) == 3
    assert not any(m.training for m in norms(model.stem).values())
    assert all(m.training for m in norms(model.layer2).values())


# --- the optimizer


def weight_decay(model, paramwise_cfg, kind='DefaultOptimWrapperConstructor', scope='mmengine'):
    """name of each parameter -> (lr, weight decay)"""
    from mmengine.optim import build_optim_wrapper

    cfg = {
        'optimizer': {'type': 'SGD', 'lr': 0.1, 'weight_decay': 0.01},
        'paramwise_cfg': paramwise_cfg,
        'constructor': kind,
    }
    with DefaultScope.overwrite_default_scope(scope):
        optimizer = build_optim_wrapper(model, cfg).optimizer
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for p in group['params']
    }


@pytest.mark.parametrize(
    ('kind', 'scope'),
    (
        ('DefaultOptimWrapperConstructor', 'mmengine'),
        ('mmseg.ForceDefaultOptimWrapperConstructor', 'mmseg'),
    ),
)
def test_norm_decay_mult_reaches_all_four(kind, scope):
    model = nn.Sequential(resnet(SN), SwitchNorm(8), nn.Linear(8, 8))
    groups = weight_decay(model, {'norm_decay_mult': 0.0, 'bias_decay_mult': 0.5}, kind, scope)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    seen = set()
    for name, module in norms(model).items():
        for child, _ in module.named_parameters():
            assert groups[f'{name}.{child}'] == (0.1, 0.0)
            seen.add(child)
    assert seen == PARAMETERS
    assert groups['0.conv1.weight'] == (0.1, 0.01) and groups['2.bias'] == (0.1, 0.005)


def test_norm_decay_mult_equals_batch_norms():
    model, paramwise = resnet(SN), {'norm_decay_mult': 0.25, 'bias_lr_mult': 2.0}
    groups = weight_decay(model, paramwise)
    expected = weight_decay(resnet(BN), paramwise)
    assert {name: groups[name] for name in expected} == expected


def test_custom_keys_match_the_ready_made_names():
    paramwise = {'custom_keys': {'bn1': {'lr_mult': 0.5, 'decay_mult': 0.0}}}
    groups = weight_decay(resnet(SN), paramwise)
    for name in PARAMETERS:
        assert groups[f'bn1.{name}'] == groups[f'layer1.0.bn1.{name}'] == (0.05, 0.0)
        assert groups[f'layer1.0.bn2.{name}'] == (0.1, 0.01)
    assert groups['conv1.weight'] == (0.1, 0.01)

    groups = weight_decay(resnet(SN), {'custom_keys': {'mean_weight': {'lr_mult': 0.1}}})
    assert groups['bn1.mean_weight'][0] == pytest.approx(0.01) and groups['bn1.weight'][0] == 0.1


def test_a_shared_layer_with_bypass_duplicate():
    norm = SwitchNorm2d(8)
    model = nn.Sequential(nn.Sequential(norm), nn.Sequential(norm))
    groups = weight_decay(model, {'norm_decay_mult': 0.0, 'bypass_duplicate': True})
    assert groups == {f'0.0.{name}': (0.1, 0.0) for name in PARAMETERS}


# --- what looks for BatchNorm leaves SN alone


def test_is_norm():
    from mmcv.cnn import is_norm

    for layer in (SwitchNorm(8), SwitchNorm1d(8), SwitchNorm2d(8), SwitchNorm3d(8)):
        assert is_norm(layer) and not is_norm(layer, exclude=SwitchNorm)
        assert not isinstance(layer, _BatchNorm)


def fuse(model):
    from mmcv.cnn import fuse_conv_bn

    return fuse_conv_bn(model)


def torch_sync(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def mmengine_sync(model):
    from mmengine.model import convert_sync_batchnorm

    return convert_sync_batchnorm(model, 'torch')


def mmengine_revert(model):
    from mmengine.model import revert_sync_batchnorm

    return revert_sync_batchnorm(model)


def frozen(model):
    from mmdet.models.layers import FrozenBatchNorm2d

    return FrozenBatchNorm2d.convert_frozen_batchnorm(model)


CONVERSIONS = (fuse, torch_sync, mmengine_sync, mmengine_revert, frozen)


@pytest.mark.parametrize('convert', CONVERSIONS)
def test_conversions_leave_switch_norm(convert):
    original = randomize(resnet(SN))
    original.eval()
    before = norms(original)
    model = convert(copy.deepcopy(original))
    assert set(norms(model)) == set(before) and len(before) == 20
    assert set(model.state_dict()) == set(original.state_dict())
    assert_same_outputs(model, original, torch.randn(2, 3, 64, 64))

    bn_model = resnet({'type': 'SyncBN'} if convert is mmengine_revert else BN)
    kind = type(bn_model.bn1)
    assert not any(type(m) is kind for m in convert(bn_model).modules())  # but takes BatchNorm


def test_mmcv_sync_conversion_leaves_a_model_of_switch_norm():
    from mmengine.model import convert_sync_batchnorm

    model = resnet(SN)
    before = norms(model)
    assert norms(convert_sync_batchnorm(model, 'mmcv')) == before


@pytest.mark.parametrize(('norm_cfg', 'fuses'), ((SN, False), (BN, True)), ids=('SN', 'BN'))
def test_efficient_conv_bn_eval_of_conv_module_leaves_switch_norm(norm_cfg, fuses):
    from mmcv.cnn import ConvModule

    conv = ConvModule(3, 8, 1, norm_cfg=norm_cfg, efficient_conv_bn_eval=True)
    assert (conv.efficient_conv_bn_eval_forward is not None) is fuses
    plain = ConvModule(3, 8, 1, norm_cfg=norm_cfg)
    plain.load_state_dict(randomize(conv).state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(conv.eval()(x), plain.eval()(x))


def test_efficient_conv_bn_eval_of_mmengine_never_changes_switch_norm():
    """It traces the model, which stops at SN as at any layer that is not torch's own."""
    from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval

    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), SwitchNorm2d(8)))
    x = torch.randn(2, 3, 8, 8)
    want = randomize(model).eval()(x)
    try:
        turn_on_efficient_conv_bn_eval(model, '0')
    except torch.fx.proxy.TraceError:
        pass
    torch.testing.assert_close(model(x), want)


@pytest.mark.parametrize(('norm_cfg', 'synced'), ((SN, False), (BN, True)), ids=('SN', 'BN'))
def test_use_syncbn_of_rtmdet_leaves_switch_norm(norm_cfg, synced, monkeypatch):
    from mmdet.models.detectors import rtmdet

    monkeypatch.setattr(rtmdet, 'get_world_size', lambda: 2)
    cfg = read_config('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').model
    cfg.backbone.update(init_cfg=None, norm_cfg=norm_cfg, widen_factor=0.125)
    cfg.neck.update(norm_cfg=norm_cfg, in_channels=[32, 64, 128], out_channels=32)
    cfg.bbox_head.update(norm_cfg=norm_cfg, in_channels=32, feat_channels=32)
    model = MODELS.build({**cfg, '_scope_': 'mmdet'})
    assert bool(norms(model, nn.SyncBatchNorm)) is synced
    assert bool(norms(model)) is not synced
    assert not norms(model, nn.BatchNorm2d)


# --- checkpoints


@pytest.fixture
def messages():
    """What the toolboxes log while a test runs."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, handler = MMLogger.get_instance('sn_mm_tests'), Handler()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def save(path, model, old_torchvision):
    """As mmengine saves it, or as the files that ``torchvision://`` names: bare, with fc."""
    state = model.state_dict()
    if old_torchvision:
        state = {k: v for k, v in state.items() if 'num_batches_tracked' not in k}
        state.update({'fc.weight': torch.zeros(10, 8), 'fc.bias': torch.zeros(10)})
    torch.save(state if old_torchvision else {'meta': {}, 'state_dict': state}, path)


@pytest.mark.parametrize('toolbox', ('mmdet', 'mmseg'))
@pytest.mark.parametrize('old_torchvision', (False, True))
def test_batch_norm_checkpoint_loads(toolbox, old_torchvision, tmp_path, messages):
    path = str(tmp_path / 'resnet50.pth')
    source = randomize(resnet(BN, toolbox, depth=50))
    save(path, source, old_torchvision)
    init_cfg = {'type': 'Pretrained', 'checkpoint': path}
    model = resnet(SN, toolbox, depth=50, init_cfg=init_cfg)
    messages.clear()
    model.init_weights()

    report = '\n'.join(messages)
    missing = report.partition('missing keys in source state_dict: ')[2].split('\n')[0].split(', ')
    added = {f'{n}.{p}' for n in norms(model) for p in ('mean_weight', 'var_weight')}
    assert set(missing) == added and len(missing) == 106
    unexpected = report.partition('unexpected key in source state_dict: ')[2].split('\n')[0]
    assert unexpected == ('fc.weight, fc.bias' if old_torchvision else '')
    assert 'size mismatch' not in report

    state = model.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(state[name], value) or 'num_batches' in name, name
    for layer in norms(model).values():
        assert layer.importance()['mean']['bn'] == pytest.approx(0.9)


def test_batch_norm_checkpoint_loads_strictly_but_for_the_new_weights():
    model = resnet(SN)
    result = model.load_state_dict(resnet(BN).state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert {name.rpartition('.')[2] for name in result.missing_keys} == {
        'mean_weight',
        'var_weight',
    }


# --- whole ready-made models


def switched(model):
    """The SN layers of a model, which has no other norm."""
    assert not norms(model, (_BatchNorm, nn.GroupNorm))
    return norms(model)


def assert_trains(model, losses):
    total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert total.isfinite()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None and p.grad.isfinite().all(), name


def count_frozen(model):
    return sum(not p.requires_grad for p in model.parameters())


@pytest.mark.slow
def test_ready_made_mask_rcnn():
    from mmdet.testing import demo_mm_inputs

    cfg = read_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.update(init_cfg=None, norm_cfg=SN)
    cfg.neck.norm_cfg = SN
    model = MODELS.build({**cfg, '_scope_': 'mmdet'})
    layers = switched(model)
    assert len(layers) == 53 + 8
    assert 'neck.lateral_convs.0.bn.mean_weight' in model.state_dict()

    model.train()
    torch.manual_seed(0)
    shapes = [[3, 64, 96], [3, 64, 80]]
    data = demo_mm_inputs(2, shapes, num_items=[2, 3], num_classes=80, with_mask=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = model.data_preprocessor(data, training=True)
        losses = model(**data, mode='loss')
    assert_trains(model, losses)
    assert count_frozen(model) == 11 * 5  # stem and first stage: a convolution and four of SN each
    trained = [m.num_batches_tracked.item() for m in layers.values()]
    assert trained.count(1) == 61 - 11 and trained.count(0) == 11


def test_ready_made_deeplabv3plus():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    name = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'
    cfg = read_config(name).model
    cfg.pretrained = None
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        cfg[part].norm_cfg = SN
    model = MODELS.build({**cfg, '_scope_': 'mmseg'}).train()
    layers = switched(model)
    assert len(layers) > 60

    samples = []
    for _ in range(2):
        label = torch.randint(0, 19, (1, 64, 64))
        meta = {'img_shape': (64, 64), 'ori_shape': (64, 64), 'pad_shape': (64, 64)}
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta))
    with DefaultScope.overwrite_default_scope('mmseg'):
        losses = model(torch.randn(2, 3, 64, 64), samples, mode='loss')
    assert_trains(model, losses)
    assert count_frozen(model) == 0
    assert all(m.num_batches_tracked == 1 for m in layers.values())


def test_config_with_switch_norm_survives_a_dump(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n"
        "custom_imports = dict(imports=['sn_mm'])\n"
        "norm_cfg = dict(type='SN', normalizers=('in', 'bn'), sync=2, requires_grad=True)\n"
        'model = dict(backbone=dict(norm_cfg=norm_cfg, depth=18, init_cfg=None))\n'
    )
    cfg = Config.fromfile(path)
    for suffix in ('py', 'json', 'yml'):
        dumped = tmp_path / f'dumped.{suffix}'
        cfg.dump(dumped)
        again = Config.fromfile(dumped)
        assert list(again.custom_imports.imports) == ['sn_mm']
        model = MODELS.build({**again.model.backbone, '_scope_': 'mmdet'})
        layers = switched(model)
        assert len(layers) == 20
        assert {(m.normalizers, m.sync) for m in layers.values()} == {(('in', 'bn'), 2)}
