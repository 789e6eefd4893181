"""Frozen BatchNorms of other libraries: named, and converted where that is asked for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sn_mm import SwitchNorm, convert_switch_norm, revert_switch_norm
from sn_mm.frozen import FrozenSwitchNorm2d


def measured(norm: nn.Module) -> nn.Module:
    """A norm with statistics as of a trained network."""
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    norm.running_mean.normal_(std=3)
    norm.running_var.uniform_(0.5, 4)
    return norm


def of_torchvision() -> nn.Module:
    return pytest.importorskip('torchvision').ops.FrozenBatchNorm2d(6, eps=1e-3)


def of_mmdet() -> nn.Module:
    return pytest.importorskip('mmdet.models.layers').FrozenBatchNorm2d(6)


def of_transformers() -> nn.Module:
    module = pytest.importorskip('transformers.models.deformable_detr.modeling_deformable_detr')
    return module.DeformableDetrFrozenBatchNorm2d(6)


@pytest.mark.parametrize('make', [of_torchvision, of_mmdet, of_transformers])
def test_converted_it_computes_the_same_in_any_mode_until_it_is_made_to_learn(make):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), measured(make()))
    x, state = torch.randn(2, 3, 8, 8) * 3, copy.deepcopy(model[1].state_dict())
    want = model(x)
    convert_switch_norm(model, frozen=True)
    layer = model[1]
    assert type(layer) is FrozenSwitchNorm2d
    assert not any(p.requires_grad for p in layer.parameters())
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(x), want, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in state.items())
    model.requires_grad_(True)
    assert model.train()[1].training
    model(x).sum().backward()
    assert layer.mean_weight.grad is not None
    assert not torch.equal(layer.running_mean, state['running_mean'])


def test_reverted_it_is_batch_norm_again():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), measured(of_torchvision())).eval()
    x, lines = torch.randn(2, 3, 8, 8) * 3, []
    want = model(x)
    convert_switch_norm(model, frozen=True)
    revert_switch_norm(model, report=lines.append)
    assert lines[0].startswith('1: FrozenSwitchNorm2d -> BatchNorm2d')
    assert type(model[1]) is nn.BatchNorm2d and not model[1].weight.requires_grad
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fuse_conv_bn_eval(*model)(x), want, rtol=1e-5, atol=1e-5)


def test_one_that_has_learned_another_importance_is_not_reverted():
    model, lines = nn.Sequential(FrozenSwitchNorm2d(6, init_importance={'bn': 0.9})), []
    revert_switch_norm(model, report=lines.append)
    assert (
        lines[0]
        == "0: FrozenSwitchNorm2d left, 'in' and 'ln' make 0.1 of its mean, 0.1 of its variance"
    )


def test_without_asking_each_is_named_with_the_way_to_convert_it():
    lines: list[str] = []
    model = nn.Sequential(of_torchvision(), nn.BatchNorm2d(6), nn.LayerNorm(6))
    with pytest.warns(UserWarning, match='^1 norms are not converted: 0: FrozenBatchNorm2d'):
        convert_switch_norm(model, report=lines.append)
    assert lines == [
        '0: FrozenBatchNorm2d left as it is, a frozen BatchNorm: frozen=True converts it',
        '1: BatchNorm2d -> SwitchNorm2d',
        '2: LayerNorm left as it is, not of the batch norm family',
        'Norms converted to Switchable Normalization: 1',
    ]


def test_a_class_of_the_same_tensors_that_computes_something_else_stays():
    torchvision = pytest.importorskip('torchvision')

    class Activated(torchvision.ops.FrozenBatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    model = nn.Sequential(nn.BatchNorm2d(6), Activated(6))
    with pytest.warns(UserWarning, match='Activated left as it is.*computes something else'):
        convert_switch_norm(model, frozen=True)
    assert type(model[1]) is Activated


def test_a_norm_of_a_kind_of_its_own_is_named():
    class Unit(nn.Module):
        """Its name says nothing; its tensors do."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))
            self.register_buffer('running_var', torch.ones(6))

    class ConvNormAct(nn.Sequential):
        pass

    model = ConvNormAct(nn.BatchNorm2d(6), Unit(), nn.LocalResponseNorm(2))
    lines: list[str] = []
    with pytest.warns(UserWarning, match='^1 norms are not converted: 1: Unit'):
        convert_switch_norm(model, report=lines.append)
    assert [line.split()[:2] for line in lines[:-1]] == [
        ['0:', 'BatchNorm2d'], ['1:', 'Unit'], ['2:', 'LocalResponseNorm'],
    ]  # fmt: skip


def test_a_detector_of_torchvision_trains_with_the_losses_that_it_had():
    detection = pytest.importorskip('torchvision.models.detection')
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name='resnet18', weights=None)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    model = detection.FCOS(backbone, 3, anchor_generator=anchors, min_size=64, max_size=64).train()
    target = {'boxes': torch.tensor([[8.0, 8, 40, 40]]), 'labels': torch.tensor([1])}
    images = [torch.rand(3, 64, 64)]
    want = model(images, [target])
    convert_switch_norm(model, select=lambda name: name.startswith('backbone'), frozen=True)
    assert sum(isinstance(m, SwitchNorm) for m in model.modules()) == 20
    losses = model.train()(images, [target])
    for name, loss in want.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-4, atol=1e-5)
