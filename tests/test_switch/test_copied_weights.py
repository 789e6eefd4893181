"""MMAction2's backbones, which copy ImageNet weights of BatchNorm, with real weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import sn_mm
from sn_mm import SwitchNorm

pytest.importorskip('mmaction')
torchvision = pytest.importorskip('torchvision')
CONFIGS = Path(__file__).parents[2] / 'configs'


def save_weights(folder: Path, depth: int) -> tuple[nn.Module, str]:
    """A ResNet of torchvision with the statistics of some training, and its file."""
    net = getattr(torchvision.models, f'resnet{depth}')()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    torch.save(net.state_dict(), folder / 'weights.pth')
    return net, str(folder / 'weights.pth')


def build(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmaction'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    return model


def check(norm: nn.Module, batch_norm: nn.BatchNorm2d) -> None:
    """The norm has the weights of the BatchNorm, and the importance that goes with them."""
    assert isinstance(norm, SwitchNorm)
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
        assert torch.equal(getattr(norm, name), getattr(batch_norm, name)), name
    for shares in norm.importance().values():
        assert shares['bn'] == pytest.approx(0.9)


BACKBONES = {
    'TSN': dict(type='ResNet', norm_eval=False),
    'TSM': dict(type='ResNetTSM', norm_eval=False, shift_div=8),
    'C2D': dict(type='C2D', norm_eval=False),
    'I3D': dict(type='ResNet3d', conv1_kernel=(5, 7, 7), inflate=0, norm_eval=False),
    'SlowOnly': dict(type='ResNet3dSlowOnly', lateral=False, inflate=0, norm_eval=False),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_a_switched_backbone_takes_the_weights_of_the_file(name: str, tmp_path: Path) -> None:
    net, file = save_weights(tmp_path, 18)
    backbone = dict(BACKBONES[name], depth=18, pretrained=file)
    head = dict(type='TSNHead', num_classes=4, in_channels=512)
    model = dict(type='Recognizer2D', backbone=backbone, cls_head=head)
    cfg = Config(dict(default_scope='mmaction', model=model))
    sn_mm.switch_norm_cfg(cfg)
    cfg.dump(tmp_path / 'switched.py')  # as a training keeps it
    built = build(Config.fromfile(tmp_path / 'switched.py')).backbone
    check(built.conv1.bn, net.bn1)
    check(built.layer2[0].conv2.bn, net.layer2[0].bn2)
    check(built.layer2[0].downsample.bn, net.layer2[0].downsample[1])


def test_the_pathways_of_slowfast_take_the_weights_and_keep_their_frozen_stages(tmp_path: Path):
    """The pathways' norms are in no config: they are converted when the model is built."""
    net, file = save_weights(tmp_path, 18)
    both = dict(type='resnet3d', depth=18, norm_eval=False)
    slow = dict(both, pretrained=file, lateral=True, conv1_kernel=(1, 7, 7), frozen_stages=1)
    fast = dict(both, pretrained=None, lateral=False, base_channels=8)
    backbone = dict(type='ResNet3dSlowFast', pretrained=None, slow_pathway=slow, fast_pathway=fast)
    head = dict(type='SlowFastHead', in_channels=576, num_classes=4)
    model = dict(type='Recognizer3D', backbone=backbone, cls_head=head)
    cfg = Config(dict(default_scope='mmaction', model=model))
    sn_mm.switch_config(cfg, dict(type='SN'), 'existing')
    slow_path = build(cfg).train().backbone.slow_path
    for frozen, norm, batch_norm in [
        (True, slow_path.layer1[0].conv2.bn, net.layer1[0].bn2),
        (False, slow_path.layer2[0].conv2.bn, net.layer2[0].bn2),
    ]:
        check(norm, batch_norm)
        assert norm.training == norm.mean_weight.requires_grad == (not frozen)


def test_norms_that_stay_are_loaded_as_before(tmp_path: Path) -> None:
    net, file = save_weights(tmp_path, 18)
    backbone = dict(BACKBONES['TSN'], depth=18, pretrained=file, norm_cfg=dict(type='BN'))
    head = dict(type='TSNHead', num_classes=4, in_channels=512)
    model = dict(type='mmaction.Recognizer2D', backbone=backbone, cls_head=head)
    switched = dict(type=model.pop('type'))
    cfg = Config(dict(model=dict(model, type='sn_mm.SwitchedModel', switched=switched)))
    norm = build(cfg).backbone.layer1[0].conv1.bn
    assert type(norm) is nn.BatchNorm2d
    assert torch.equal(norm.running_mean, net.layer1[0].bn1.running_mean)


@pytest.mark.slow  # a ResNet-50
def test_the_recipe_of_i3d_starts_from_the_weights_that_it_names(tmp_path: Path) -> None:
    (file,) = (CONFIGS / 'i3d').glob('*.py')
    cfg = Config.fromfile(file)
    net, cfg.model.backbone.pretrained = save_weights(tmp_path, 50)
    backbone = build(cfg).backbone
    check(backbone.layer3[5].conv3.bn, net.layer3[5].bn3)
    inflated = net.layer3[0].conv1.weight.unsqueeze(2).expand(-1, -1, 3, -1, -1) / 3
    torch.testing.assert_close(backbone.layer3[0].conv1.conv.weight, inflated)
