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


def of_nobody() -> nn.Module:
    """As detectron2's and others' copies: known by its buffers alone."""

    class FrozenBN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in (
                ('weight', 1),
                ('bias', 0),
                ('running_mean', 0),
                ('running_var', 1),
            ):
                self.register_buffer(name, torch.full((6,), float(value)))
            self.register_buffer('num_batches_tracked', None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tensors = self.running_mean, self.running_var, self.weight, self.bias
            return nn.functional.batch_norm(x, *tensors, training=False)

    return FrozenBN()


@pytest.mark.parametrize('make', [of_torchvision, of_mmdet, of_transformers, of_nobody])
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


@pytest.mark.slow  # a ResNet-50
def test_the_whole_mask_r_cnn_of_torchvision_is_converted():
    detection = pytest.importorskip('torchvision.models.detection')
    model = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).eval()
    x, rois = torch.rand(1, 3, 64, 64), torch.rand(2, 256, 7, 7)
    want = [*model.backbone(x).values(), model.roi_heads.box_head(rois)]
    lines: list[str] = []
    convert_switch_norm(model, init_importance='bn', report=lines.append)
    # 53 in the ResNet, 4 + 4 in the pyramid, 4 in the box head, 4 in the mask head.
    assert lines[-1] == 'Norms converted to Switchable Normalization: 69'
    for got, expected in zip([*model.backbone(x).values(), model.roi_heads.box_head(rois)], want):
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


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
