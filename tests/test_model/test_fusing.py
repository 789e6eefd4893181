"""Code that folds BatchNorm into convolutions by its attributes is right, or stops with a line."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from sn_mm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, convert_switch_norm, revert_switch_norm
from sn_mm.errors import InputError

LINE = r'eps of an SN layer was added to a tensor.* sn_mm\.revert_switch_norm\(model\)'


def run(model: nn.Module, size: int = 64) -> nn.Module:
    """Moves the running statistics, and ends in evaluation mode."""
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        model(torch.randn(2, 3, size, size))
    return model.eval()


def is_refused(fuse, model: nn.Module) -> None:
    """``fuse`` takes the model with BatchNorm, and stops at SN."""
    fuse(copy.deepcopy(model))
    converted = convert_switch_norm(model).eval()
    with pytest.raises(InputError, match=LINE):
        fuse(converted)


def test_torchs_own_fusing():
    conv, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 8, 8)
    model = run(nn.Sequential(conv, SwitchNorm2d(8, init_importance='bn')), 8)
    with pytest.raises(InputError, match=LINE):
        fuse_conv_bn_eval(*model)
    with pytest.raises(InputError, match=LINE):
        fuse_linear_bn_eval(nn.Linear(3, 8).eval(), SwitchNorm1d(8).eval())
    expected = model(x)
    fused = fuse_conv_bn_eval(*revert_switch_norm(model, 0.01))
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore')
def test_torchs_quantization_refuses_the_class_itself():
    model = run(nn.Sequential(nn.Conv2d(3, 8, 3), SwitchNorm2d(8)), 8)
    with pytest.raises((AssertionError, NotImplementedError), match='SwitchNorm2d'):
        torch.ao.quantization.fuse_modules(model, ['0', '1'])


@pytest.mark.parametrize('fuse', ['fused', 'prepared'])
@pytest.mark.filterwarnings('ignore')
def test_norms_that_torchs_quantization_has_fused_stay(fuse):
    """Its preparation copies their weights into a BatchNorm, and its modules fold that."""
    quantization = torch.ao.quantization
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).train()
    model = quantization.fuse_modules_qat(model, ['0', '1', '2'])
    model.qconfig = quantization.get_default_qat_qconfig()
    name = '0.1'
    if fuse == 'prepared':
        model, name = quantization.prepare_qat(model), '0.bn'
    line = f'{name}: BatchNorm2d left as it is, ConvBnReLU2d of torch.ao folds it by its numbers'
    with pytest.raises(InputError, match=f'no norm to convert: the model has {line}'):
        convert_switch_norm(model)


def test_eps_stays_a_number():
    layer = SwitchNorm2d(3, eps=1e-3)
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.eps == 1e-3 and isinstance(copied.eps, float) and str(copied.eps) == '0.001'
    layer.eps = 1e-5
    assert layer.eps == nn.BatchNorm2d(3, eps=layer.eps).eps == 1e-5
    assert type(revert_switch_norm(SwitchNorm2d(3, init_importance='bn'), 0.01).eps) is float


@pytest.mark.parametrize('name', ['repvit_m0_9', 'efficientvit_m0'])
def test_timms_reparameterization(name):
    timm = pytest.importorskip('timm', exc_type=ImportError)
    from timm.utils.model import reparameterize_model

    is_refused(reparameterize_model, run(timm.create_model(name, num_classes=4)))


def test_mmpretrains_re_parameterization():
    repmlp = pytest.importorskip('mmpretrain.models.backbones.repmlp', exc_type=ImportError)
    block = repmlp.RepMLPBlock(3, 8, 8, reparam_conv_kernels=(1, 3), globalperceptron_ratio=1)
    is_refused(lambda block: block.local_inject(), run(block, 16))


def test_mmcvs_fusing_passes_sn_by():
    """It goes by the class, so SN stays a layer behind its convolution."""
    utils = pytest.importorskip('mmcv.cnn.utils.fuse_conv_bn', exc_type=ImportError)
    model, x = run(nn.Sequential(nn.Conv2d(3, 8, 3), SwitchNorm2d(8)), 8), torch.randn(2, 3, 8, 8)
    fused = utils.fuse_conv_bn(copy.deepcopy(model))
    assert isinstance(fused[1], SwitchNorm)
    torch.testing.assert_close(fused(x), model(x))


@pytest.mark.slow
def test_ultralytics_fuses_by_default():
    tasks = pytest.importorskip('ultralytics.nn.tasks', exc_type=ImportError)
    model = run(tasks.DetectionModel('yolo11n.yaml', verbose=False))
    is_refused(lambda model: model.fuse(verbose=False), model)
