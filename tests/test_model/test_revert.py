"""revert_switch_norm: which layers become BatchNorm, their outputs, and that they fuse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sn_mm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, revert_switch_norm
from sn_mm.errors import InputError

SHAPES = {
    SwitchNorm1d: [(5, 4), (5, 4, 6)],
    SwitchNorm2d: [(3, 4, 5, 6), (3, 4, 1, 1)],
    SwitchNorm3d: [(2, 4, 3, 4, 5)],
}
BATCH_NORMS = {
    SwitchNorm1d: nn.BatchNorm1d,
    SwitchNorm2d: nn.BatchNorm2d,
    SwitchNorm3d: nn.BatchNorm3d,
}


@torch.no_grad()
def trained(layer: SwitchNorm, off_mean: float = 0, off_var: float | None = None) -> SwitchNorm:
    """Tensors as after training; 'in' and 'ln' together have these shares."""
    offs = (off_mean, off_mean if off_var is None else off_var)
    for logits, off in zip((layer.mean_weight, layer.var_weight), offs):
        others = off / (len(logits) - 1) if len(logits) > 1 else 0
        for i, scope in enumerate(layer.normalizers):
            share = 1 - off if scope == 'bn' else others
            logits[i] = math.log(share) if share else -torch.inf
    if layer.weight is not None:
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_()
    if layer.running_mean is not None:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 1.5)
        layer.num_batches_tracked.fill_(7)
    return layer


def conv_network(*offs: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for off in offs:
        layers += [
            nn.Conv2d(3 if not layers else 4, 4, 3),
            trained(SwitchNorm2d(4), off),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers).eval()


# --- the BatchNorm


@pytest.mark.parametrize('correction', [0, 1])
@pytest.mark.parametrize('layer', SHAPES)
def test_all_weight_on_bn_stays_the_same_function(layer, correction):
    """Inputs of one position included, and training too."""
    sn = trained(layer(4, eps=1e-3, momentum=0.3, correction=correction)).double()
    model = nn.Sequential(copy.deepcopy(sn))
    assert revert_switch_norm(model, 0.01) is model
    bn = model[0]
    assert type(bn) is BATCH_NORMS[layer] and (bn.eps, bn.momentum) == (1e-3, 0.3)
    for training in (False, True) if correction == 0 else (False,):
        sn.train(training), bn.train(training)
        for shape in SHAPES[layer]:
            x = torch.randn(shape).double()
            torch.testing.assert_close(bn(x), sn(x))
    for name, tensor in bn.state_dict().items():
        torch.testing.assert_close(tensor, sn.state_dict()[name])


def test_a_layer_that_is_the_model_comes_back_as_batch_norm():
    sn, lines = trained(SwitchNorm2d(4)), []
    bn = revert_switch_norm(sn, 0.5, report=lines.append)
    assert type(bn) is nn.BatchNorm2d and bn.weight is sn.weight
    assert lines[0] == 'model: SwitchNorm2d -> BatchNorm2d'


def test_mode_gradients_hooks_and_sharing_stay():
    calls = []
    sn = trained(SwitchNorm2d(4)).eval()
    sn.weight.requires_grad_(False)
    handle = sn.register_forward_hook(lambda module, *args: calls.append(type(module)))
    model = revert_switch_norm(nn.Sequential(sn, nn.ReLU(), sn), 0.1)
    assert model[0] is model[2] and not model[0].training
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    model(torch.randn(2, 4, 3, 3))
    handle.remove()
    model(torch.randn(2, 4, 3, 3))
    assert calls == [nn.BatchNorm2d] * 2


def test_tracking_that_was_stopped_stays_stopped():
    sn = trained(SwitchNorm2d(4))
    sn.track_running_stats = False
    bn = revert_switch_norm(sn, 0.5)
    before = bn.running_mean.clone()
    bn(torch.randn(2, 4, 3, 3))
    assert bn.training and torch.equal(bn.running_mean, before)


# --- which layers


@pytest.mark.parametrize(
    ('off_mean', 'off_var', 'reason'),
    [
        (0.009, 0.009, None),
        (0.011, 0, "'in' and 'ln' make 0.011 of its mean, 0 of its variance"),
        (0, 0.011, "'in' and 'ln' make 0 of its mean, 0.011 of its variance"),
        (0.5, 0.5, "'in' and 'ln' make 0.5 of its mean, 0.5 of its variance"),
    ],
)
def test_mean_and_variance_must_both_be_below_the_threshold(off_mean, off_var, reason):
    lines: list[str] = []
    model = nn.Sequential(trained(SwitchNorm2d(4, dtype=torch.float64), off_mean, off_var))
    revert_switch_norm(model, 0.01, report=lines.append)
    if reason is None:
        assert lines[0] == '0: SwitchNorm2d -> BatchNorm2d'
    else:
        assert isinstance(model[0], SwitchNorm2d) and lines[0] == f'0: SwitchNorm2d left, {reason}'
    assert lines[1] == f"SN layers turned into torch's norms: {int(reason is None)} of 1"


class OwnNorm(SwitchNorm2d):
    """A subclass may do anything."""


def with_buffer(layer: SwitchNorm) -> SwitchNorm:
    layer.register_buffer('scale', torch.ones(()))
    return layer


@pytest.mark.parametrize(
    ('layer', 'reason'),
    [
        (SwitchNorm2d(4, normalizers=('in', 'ln')), "it has no 'bn'"),
        (SwitchNorm2d(4, track_running_stats=False), 'it keeps no running statistics'),
        (SwitchNorm2d(4, affine=False), 'no weight and bias'),
        (SwitchNorm(4), 'it takes any number of axes, and no inputs show which'),
        (OwnNorm(4), 'a subclass'),
        (with_buffer(SwitchNorm2d(4)), 'another norm would drop its scale'),
    ],
    ids=lambda x: x if isinstance(x, str) else '',
)
def test_layers_that_cannot_become_batch_norm_are_left_with_the_reason(layer, reason):
    lines: list[str] = []
    model = nn.Sequential(trained(layer))
    revert_switch_norm(model, 0.9, report=lines.append)
    assert model[0] is layer
    assert f'left, {reason}' in lines[0] or reason in lines[0]


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 6), (3, 4, 5, 6), (2, 4, 3, 4, 5)])
def test_inputs_show_the_axes_of_the_general_layer(shape):
    sn = trained(SwitchNorm(4)).eval()
    x = torch.randn(shape)
    want = sn(x)
    bn = revert_switch_norm(nn.Sequential(sn), 0.1, x)[0]
    dims = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    assert type(bn) is dims[len(shape)]
    torch.testing.assert_close(bn(x), want)


# --- the report


def test_a_layer_may_be_called_by_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = SwitchNorm(3, init_importance='bn')

        def forward(self, x):
            return self.norm(input=x)

    net = revert_switch_norm(Net(), 0.01, torch.randn(2, 3, 4, 4), report=lambda line: None)
    assert isinstance(net.norm, nn.BatchNorm2d)


def test_the_largest_output_change_is_the_true_one():
    model, x, lines = conv_network(0.001, 0.3, 0.02), torch.randn(2, 3, 12, 12), []
    before = model(x)
    model[1].train()
    revert_switch_norm(model, 0.05, x, report=lines.append)
    assert [type(model[i]) for i in (1, 4, 7)] == [nn.BatchNorm2d, SwitchNorm2d, nn.BatchNorm2d]
    assert model[1].training and not model[4].training
    change = (model.eval()(x) - before).abs().max().item()
    assert change > 1e-3
    assert lines[-2] == "SN layers turned into torch's norms: 2 of 3"
    assert lines[-1] == (
        f'Largest output change: {change:.3g}, of outputs up to {before.abs().max().item():.3g}'
    )


def test_a_smaller_share_changes_less():
    changes = []
    x = torch.randn(2, 3, 12, 12)
    for off in (1e-2, 1e-4, 1e-6):
        torch.manual_seed(0)
        model = conv_network(off, off).double()
        want = model(x.double())
        changes.append((revert_switch_norm(model, 0.1)(x.double()) - want).abs().max().item())
    assert changes[0] > 50 * changes[1] > 2500 * changes[2] > 0


def test_several_inputs_and_nested_outputs():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = trained(SwitchNorm2d(4), 0.01)

        def forward(self, x: Tensor, shift: float) -> dict:
            return {'a': [self.norm(x) + shift], 'size': x.shape[2:], 'n': None}

    lines: list[str] = []
    revert_switch_norm(Net(), 0.1, (torch.randn(2, 4, 3, 3), 1000.0), report=lines.append)
    change, largest = (float(part.split()[-1]) for part in lines[-1].split(', '))
    assert 0 < change < 1 and 995 < largest < 1010


@pytest.mark.parametrize('threshold', [0, 1, -0.1, 2, float('nan')])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(InputError, match=f'threshold must be above 0 and below 1, got {threshold}'):
        revert_switch_norm(conv_network(0), threshold)


def test_a_model_without_sn_is_refused():
    with pytest.raises(InputError, match='no SN layer'):
        revert_switch_norm(nn.BatchNorm2d(4), 0.1)


# --- fusing


def test_mmcv_fuses_a_simplified_resnet():
    """Within rounding of the network whose layers all lie on 'bn'; one that mixes stays SN."""
    pytest.importorskip('mmcv')
    from mmcv.cnn.utils import fuse_conv_bn
    from mmengine.registry import MODELS

    cfg = {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8}
    model = MODELS.build({**cfg, 'norm_cfg': {'type': 'SN'}, '_scope_': 'mmdet'})
    for name, module in model.named_modules():
        if isinstance(module, SwitchNorm2d):
            trained(module, 0.5 if name == 'layer2.0.bn1' else 0)
    model.double().eval()
    x, lines = torch.randn(2, 3, 64, 64).double(), []
    want = model(x)
    simplified = revert_switch_norm(model, 0.01, x, report=lines.append)
    assert lines[-2] == "SN layers turned into torch's norms: 19 of 20"
    fused = fuse_conv_bn(simplified)
    left = [n for n, m in fused.named_modules() if isinstance(m, (SwitchNorm, nn.BatchNorm2d))]
    assert left == ['layer2.0.bn1']
    for got, wanted in zip(fused(x), want):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_inputs_that_lead_to_no_tensor_are_refused():
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = SwitchNorm2d(3)

        def forward(self, x: Tensor) -> str:
            return str(self.norm(x).argmax())

    with pytest.raises(InputError, match='floating-point tensors, got output str'):
        revert_switch_norm(Labels(), 0.1, torch.randn(2, 3, 4, 4))


def test_a_change_to_nan_is_reported():
    class Spoiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = SwitchNorm2d(3, init_importance='bn')

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x)
            return y, y * (1 if isinstance(self.norm, SwitchNorm) else math.nan)

    lines: list[str] = []
    revert_switch_norm(Spoiled(), 0.1, torch.randn(2, 3, 4, 4), report=lines.append)
    assert lines[-1].startswith('Largest output change: nan')
