"""SwitchNorm1d/2d/3d as modules: equal to the layers they contain, and at home in torch."""

from __future__ import annotations

import copy
import io
import math
import pickle
from itertools import combinations
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import checkpoint

from sn_mm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from sn_mm.layer import SwitchNorm

SCOPES = ('in', 'ln', 'bn')
SUBSETS = [subset for k in (1, 2, 3) for subset in combinations(SCOPES, k)]
LAYERS = {
    (5, 4): (SwitchNorm1d, nn.BatchNorm1d, None),
    (5, 4, 6): (SwitchNorm1d, nn.BatchNorm1d, nn.InstanceNorm1d),
    (3, 4, 5, 6): (SwitchNorm2d, nn.BatchNorm2d, nn.InstanceNorm2d),
    (3, 4, 2, 3, 4): (SwitchNorm3d, nn.BatchNorm3d, nn.InstanceNorm3d),
}
FORMATS = [torch.contiguous_format, torch.channels_last]
pytestmark = pytest.mark.filterwarnings(
    'error',
    'ignore:None of the inputs have requires_grad',  # reentrant checkpoints in one another
    'ignore:TypedStorage is deprecated',  # torch 2.1, of its own torch.load
    'ignore:.*torch.cpu.amp.autocast:FutureWarning',  # torch 2.4, of its own checkpointing
)


def put_weight_on(layer: SwitchNorm, scope: str) -> None:
    """All importance on one scope: the softmax of (0, -inf) is (1, 0) exactly."""
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits.fill_(-torch.inf)
            logits[layer.normalizers.index(scope)] = 0


def randomise(layer: nn.Module) -> nn.Module:
    """Learnable tensors away from their initial values."""
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    return layer


def copy_affine(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        target.weight.copy_(source.weight)
        target.bias.copy_(source.bias)


def output_and_gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    leaves = {'x': x, 'weight': layer.weight, 'bias': layer.bias}
    y = layer(x)
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {'y': y.detach(), **dict(zip(leaves, grads))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], msg=lambda m, n=name: f'{n}: {m}', **tolerance
        )


# --- with all weight on one scope it is that layer ---------------------------------------------


@pytest.mark.parametrize('normalizers', [('bn',), ('ln', 'bn'), SCOPES], ids='+'.join)
@pytest.mark.parametrize('momentum', [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize('shape', LAYERS)
def test_all_weight_on_bn_equals_batch_norm(shape, momentum, normalizers, device):
    """Outputs, gradients and running statistics, over several training steps and evaluation."""
    sn_type, bn_type, _ = LAYERS[shape]
    options = {'momentum': momentum, 'eps': 1e-3, 'device': device, 'dtype': torch.float64}
    bn = bn_type(4, **options)
    sn = randomise(sn_type(4, normalizers=normalizers, **options))
    put_weight_on(sn, 'bn')
    copy_affine(sn, bn)
    for step in range(4):
        if step == 3:
            sn.eval(), bn.eval()
        x = torch.randn(shape, device=device, dtype=torch.float64) * (step + 1) + step
        dy = torch.randn_like(x)
        assert_same(output_and_gradients(sn, x, dy), output_and_gradients(bn, x, dy))
        assert_same(dict(sn.named_buffers()), dict(bn.named_buffers()))
    assert sn.num_batches_tracked == 3


@pytest.mark.parametrize('momentum', [0.3, None])
@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_all_weight_on_bn_equals_batch_norm_in_float32(training, memory_format, momentum, device):
    bn, sn = (t(8, momentum=momentum, device=device) for t in (nn.BatchNorm2d, SwitchNorm2d))
    randomise(sn)
    put_weight_on(sn, 'bn')
    copy_affine(sn, bn)
    for _ in range(3):
        x = torch.randn(4, 8, 16, 16, device=device).to(memory_format=memory_format)
        dy = torch.randn_like(x)
        sn.train(training), bn.train(training)
        found, expected = output_and_gradients(sn, x, dy), output_and_gradients(bn, x, dy)
        assert_same(found, expected, rtol=1e-4, atol=1e-4)
        assert_same(dict(sn.named_buffers()), dict(bn.named_buffers()), rtol=1e-4, atol=1e-5)


def test_all_weight_on_bn_without_running_statistics_equals_batch_norm():
    bn, sn = (
        t(4, track_running_stats=False, dtype=torch.float64) for t in (nn.BatchNorm2d, SwitchNorm2d)
    )
    put_weight_on(sn, 'bn')
    for training in (True, False):
        x, dy = (torch.randn(3, 4, 5, 6, dtype=torch.float64) for _ in range(2))
        sn.train(training), bn.train(training)
        assert_same(output_and_gradients(sn, x, dy), output_and_gradients(bn, x, dy))
        assert not list(sn.buffers())


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('shape', [shape for shape in LAYERS if len(shape) > 2])
def test_all_weight_on_in_equals_instance_norm(shape, training):
    sn_type, _, in_type = LAYERS[shape]
    other = in_type(4, eps=1e-3, affine=True, dtype=torch.float64)
    sn = randomise(sn_type(4, eps=1e-3, dtype=torch.float64))
    put_weight_on(sn, 'in')
    copy_affine(sn, other)
    sn.train(training), other.train(training)
    x, dy = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    assert_same(output_and_gradients(sn, x, dy), output_and_gradients(other, x, dy))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('shape', LAYERS)
def test_all_weight_on_ln_equals_group_norm_with_one_group(shape, training):
    other = nn.GroupNorm(1, 4, eps=1e-3, dtype=torch.float64)
    sn = randomise(LAYERS[shape][0](4, eps=1e-3, dtype=torch.float64))
    put_weight_on(sn, 'ln')
    copy_affine(sn, other)
    sn.train(training), other.train(training)
    x, dy = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    assert_same(output_and_gradients(sn, x, dy), output_and_gradients(other, x, dy))


def test_weight_on_ln_for_the_mean_and_bn_for_the_variance():
    """Two softmaxes: means and variances are mixed apart."""
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64) + 1
    sn = SwitchNorm2d(4, dtype=torch.float64)
    with torch.no_grad():
        sn.mean_weight.copy_(torch.tensor([-torch.inf, 0, -torch.inf]))
        sn.var_weight.copy_(torch.tensor([-torch.inf, -torch.inf, 0]))
    mean = x.mean((1, 2, 3), keepdim=True)
    var = x.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(sn(x), (x - mean) / (var + 1e-5).sqrt())


# --- training and evaluation against the reference ---------------------------------------------


@pytest.mark.parametrize('track', [True, False], ids=['tracked', 'untracked'])
@pytest.mark.parametrize('affine', [True, False], ids=['affine', 'plain'])
@pytest.mark.parametrize('normalizers', SUBSETS, ids='+'.join)
@pytest.mark.parametrize('shape', [shape for shape in LAYERS if len(shape) > 2])
def test_training_then_evaluation_equals_the_reference(shape, normalizers, affine, track):
    sn = LAYERS[shape][0](
        4,
        momentum=0.3,
        affine=affine,
        track_running_stats=track,
        normalizers=reversed(normalizers),
        dtype=torch.float64,
    )
    randomise(sn)
    args = {'normalizers': normalizers, 'momentum': 0.3, **dict(sn.named_parameters())}
    running = {k: getattr(sn, k) for k in ('running_mean', 'running_var')}
    assert (running['running_mean'] is not None) == (track and 'bn' in normalizers)
    running = {k: t if t is None else t.clone() for k, t in running.items()}
    for training in (True, True, False):
        x = torch.randn(shape, dtype=torch.float64) * 2 + 1
        judge = reference.switch_norm([x], **args, **running, training=training)
        torch.testing.assert_close(sn.train(training)(x), judge.outputs[0])
        running = {k: getattr(judge, k) for k in running}
        for k, t in running.items():
            assert getattr(sn, k) is None if t is None else torch.allclose(getattr(sn, k), t)


@pytest.mark.parametrize('shape', [(4, 3), (4, 3, 1), (4, 3, 1, 1), (4, 3, 1, 1, 1)])
def test_one_position_leaves_instance_statistics_out(shape):
    types = {2: SwitchNorm1d, 3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}
    sn = randomise(types[len(shape)](3, dtype=torch.float64))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = sn(x)
    logits = {k: getattr(sn, k)[1:] for k in ('mean_weight', 'var_weight')}
    expected = reference.switch_norm(
        [x], **logits, weight=sn.weight, bias=sn.bias, normalizers=('ln', 'bn')
    ).outputs[0]
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    assert sn.mean_weight.grad[0] == sn.var_weight.grad[0] == 0
    assert (sn.mean_weight.grad[1:] != 0).all()


def test_any_number_of_spatial_axes_in_the_general_layer():
    sn, x = SwitchNorm(3), torch.randn(2, 3, 2, 2, 2, 2)
    torch.testing.assert_close(sn(x).flatten(2), SwitchNorm(3)(x.flatten(2)))


def test_no_grad_still_moves_the_running_statistics():
    x = torch.randn(3, 4, 5, 5)
    with_grad, without = SwitchNorm2d(4), SwitchNorm2d(4)
    y = with_grad(x)
    with torch.no_grad():
        assert torch.equal(without(x), y)
    with torch.inference_mode():
        assert torch.equal(SwitchNorm2d(4)(x), y)
    assert_same(dict(without.named_buffers()), dict(with_grad.named_buffers()))
    assert without.num_batches_tracked == 1


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_frozen_parameters_let_the_gradient_through(training):
    sn = randomise(SwitchNorm2d(4, dtype=torch.float64)).train(training)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(sn(x), x, dy)
    sn.requires_grad_(False)
    sn(x).backward(dy)
    assert torch.equal(x.grad, expected)
    assert all(p.grad is None for p in sn.parameters())
    assert not sn(x.detach()).requires_grad


def test_empty_batch_leaves_the_running_statistics_alone():
    sn = SwitchNorm2d(4, momentum=None)
    sn(torch.randn(2, 4, 3, 3))
    before = copy.deepcopy(dict(sn.named_buffers()))
    x = torch.randn(0, 4, 3, 3, requires_grad=True)
    y = sn(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 4, 3, 3)
    assert all((p.grad == 0).all() for p in sn.parameters())
    assert_same(dict(sn.named_buffers()), before)
    assert sn.eval()(x).shape == (0, 4, 3, 3)


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_input_with_float32_parameters(dtype, training):
    sn = randomise(SwitchNorm2d(4)).train(training)
    x = (torch.randn(2, 4, 8, 8) * 3 + 1).to(dtype)
    expected = copy.deepcopy(sn).double()(x.double())
    y = sn(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert sn.running_mean.dtype == torch.float32


@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_model(dtype, momentum):
    sn = randomise(SwitchNorm2d(4, momentum=momentum)).to(dtype)
    judge = copy.deepcopy(sn).double()
    eps = torch.finfo(dtype).eps
    for training in (True, True, False):
        x = torch.randn(2, 4, 8, 8).to(dtype).requires_grad_()
        wide = x.detach().double().requires_grad_()
        y, expected = sn.train(training)(x), judge.train(training)(wide)
        y.sum().backward(), expected.sum().backward()
        assert y.dtype == x.grad.dtype == sn.weight.grad.dtype == sn.running_var.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=2 * eps, atol=4 * eps)
        torch.testing.assert_close(x.grad.double(), wide.grad, rtol=2 * eps, atol=4 * eps)
    torch.testing.assert_close(sn.running_var.double(), judge.running_var, rtol=4 * eps, atol=eps)
    assert sn.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype, device):
    """Convolutions in half precision, statistics and all gradients of parameters in float32."""
    conv, sn = nn.Conv2d(3, 4, 3, device=device), randomise(SwitchNorm2d(4, device=device))
    x = torch.randn(2, 3, 8, 8, device=device)
    try:
        autocast = torch.autocast(device.type, dtype=dtype)
    except UserWarning as warning:
        pytest.skip(f'this torch: {warning}')
    with autocast:
        features = conv(x)
        y = sn(features)
        whole = sn(x.new_ones(2, 4, 3, 3))
    assert features.dtype == y.dtype == dtype and whole.dtype == torch.float32
    y.float().square().sum().backward()
    judge = reference.switch_norm([features], **dict(sn.named_parameters())).outputs[0]
    torch.testing.assert_close(y.double(), judge, rtol=torch.finfo(dtype).eps, atol=1e-5)
    expected = torch.autograd.grad(judge.square().sum(), list(sn.parameters()))
    for p, grad in zip(sn.parameters(), expected):
        assert p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, grad, rtol=0.02, atol=0.1)
    assert conv.weight.grad.isfinite().all()


# --- in a network ------------------------------------------------------------------------------


@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_in_place_relu_after_it(training, memory_format):
    sn = randomise(SwitchNorm2d(4, dtype=torch.float64)).train(training)
    plain = nn.Sequential(copy.deepcopy(sn), nn.ReLU()).train(training)
    in_place = nn.Sequential(sn, nn.ReLU(inplace=True)).train(training)
    grads = []
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64).to(memory_format=memory_format)
    for net in (plain, in_place):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = net(leaf)
        y.square().sum().backward()
        grads.append([y.detach(), leaf.grad, *(p.grad for p in net.parameters())])
        assert y.is_contiguous(memory_format=memory_format)
    for found, expected in zip(*grads):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('nested', [False, True], ids=['once', 'nested'])
@pytest.mark.parametrize('reentrant', [False, True], ids=['non-reentrant', 'reentrant'])
def test_activation_checkpointing_changes_nothing(reentrant, nested, momentum):
    """Same gradients, and running statistics that saw each batch once."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), SwitchNorm2d(4, momentum=momentum), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3), SwitchNorm2d(4, momentum=momentum),
    ).double()  # fmt: skip
    again = copy.deepcopy(net)

    def inner(x: Tensor) -> Tensor:
        return checkpoint(again[1:], x, use_reentrant=reentrant)

    for _ in range(2):
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        leaf = x.detach().clone().requires_grad_()
        net(x).square().mean().backward()
        body = (lambda t: inner(again[0](t))) if nested else again
        checkpoint(body, leaf, use_reentrant=reentrant).square().mean().backward()
        torch.testing.assert_close(leaf.grad, x.grad)
        assert_same(
            {k: p.grad for k, p in again.named_parameters()},
            {k: p.grad for k, p in net.named_parameters()},
        )
        assert_same(dict(again.named_buffers()), dict(net.named_buffers()))
    assert again[1].num_batches_tracked == 2


@pytest.mark.skipif(
    not hasattr(torch.utils.checkpoint, 'create_selective_checkpoint_contexts'),
    reason='new in torch 2.4',
)
@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('operator', ['mul.Tensor', 'add.Tensor', 'convolution.default'])
def test_selective_checkpointing_changes_nothing(operator, momentum):
    """It gives the second pass what the first saved, by the order of an operator's calls."""
    name, overload = operator.split('.')
    saved = [getattr(getattr(torch.ops.aten, name), overload)]
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), SwitchNorm2d(4, momentum=momentum), nn.Tanh(),
        nn.Conv2d(4, 4, 3), SwitchNorm2d(4, momentum=momentum),
    ).double()  # fmt: skip
    again = copy.deepcopy(net)

    def residual(net: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(x[..., 4:, 4:].sum(1, keepdim=True) + 0.5 * net(x))

    def contexts() -> tuple[Any, Any]:
        return torch.utils.checkpoint.create_selective_checkpoint_contexts(saved)

    for _ in range(2):
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        leaf = x.detach().clone().requires_grad_()
        residual(net, x).square().mean().backward()
        output = checkpoint(residual, again, leaf, use_reentrant=False, context_fn=contexts)
        output.square().mean().backward()
        torch.testing.assert_close(leaf.grad, x.grad)
        assert_same(
            {k: p.grad for k, p in again.named_parameters()},
            {k: p.grad for k, p in net.named_parameters()},
        )
        assert_same(dict(again.named_buffers()), dict(net.named_buffers()))


def test_used_twice_in_one_forward_pass():
    """Shared heads see several levels before one backward pass."""
    sn = randomise(SwitchNorm2d(4, dtype=torch.float64))
    maps = [torch.randn(2, 4, s, s, dtype=torch.float64, requires_grad=True) for s in (6, 3)]
    params = list(sn.parameters())
    sum(sn(x).square().sum() for x in maps).backward()
    judge = sum(
        reference.switch_norm([x], **dict(sn.named_parameters())).outputs[0].square().sum()
        for x in maps
    )
    expected = torch.autograd.grad(judge, [*maps, *params])
    for leaf, grad in zip([*maps, *params], expected):
        torch.testing.assert_close(leaf.grad, grad)
    assert sn.num_batches_tracked == 2


def test_evaluation_before_training_in_one_backward_pass():
    """Training moves the running statistics in place; the earlier pass keeps its gradient."""
    sn = SwitchNorm2d(4, dtype=torch.float64).eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    expected = torch.autograd.grad(sn(x), [x, *sn.parameters()], dy)
    y = sn(x)
    sn.train()(x)
    for found, grad in zip(torch.autograd.grad(y, [x, *sn.parameters()], dy), expected):
        assert torch.equal(found, grad)


def test_an_optimizer_learns_the_importance():
    """Training on a target normalized per instance moves the importance to 'in'."""
    sn = SwitchNorm2d(4)
    optimizer = torch.optim.SGD(sn.parameters(), lr=1.0)
    for _ in range(30):
        x = torch.randn(4, 4, 8, 8) * (torch.rand(4, 4, 1, 1) + 0.2) + torch.randn(4, 4, 1, 1)
        loss = (sn(x) - nn.functional.instance_norm(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for importance in sn.importance().values():
        assert importance['in'] > 0.5
        assert sum(importance.values()) == pytest.approx(1)


# --- copies and state --------------------------------------------------------------------------


def trained_layer(**args: Any) -> SwitchNorm:
    sn = randomise(SwitchNorm2d(4, **args))
    sn(torch.randn(2, 4, 3, 3)).sum().backward()
    return sn


def save_and_load(sn: SwitchNorm) -> SwitchNorm:
    file = io.BytesIO()
    torch.save(sn, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    'duplicate', [copy.deepcopy, lambda sn: pickle.loads(pickle.dumps(sn)), save_and_load],
    ids=['deepcopy', 'pickle', 'torch.save'],
)  # fmt: skip
@pytest.mark.parametrize('args', [{}, {'normalizers': ('bn', 'in'), 'sync': 2, 'correction': 1}])
def test_copies_behave_the_same_and_share_nothing(duplicate, args):
    sn = trained_layer(**args)
    twin = duplicate(sn)
    assert repr(twin) == repr(sn) and twin.state_dict().keys() == sn.state_dict().keys()
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(twin(x), sn(x))
    assert_same(twin.state_dict(), sn.state_dict())
    twin(x)
    assert sn.num_batches_tracked == 2 and twin.num_batches_tracked == 3
    assert torch.equal(twin.eval()(x), twin(x)) and not torch.equal(twin(x), sn.eval()(x))


@pytest.mark.parametrize('args', [{}, {'affine': False}, {'track_running_stats': False},
                                  {'normalizers': ('in', 'ln')}])  # fmt: skip
def test_state_dict_round_trip(args):
    sn = trained_layer(**args)
    file = io.BytesIO()
    torch.save(sn.state_dict(), file)
    file.seek(0)
    twin = SwitchNorm2d(4, **args)
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(twin.eval()(x), sn.eval()(x))
    assert_same(twin.state_dict(), sn.state_dict())


def test_a_shallow_copy_keeps_the_process_group():
    layer = SwitchNorm2d(3)
    layer.process_group = group = ProcessGroup(0, 1)
    assert copy.copy(layer).process_group is group and copy.deepcopy(layer).process_group is group
    assert pickle.loads(pickle.dumps(SwitchNorm2d(3))).process_group is None


@pytest.mark.parametrize('affine', [True, False])
def test_without_bias_the_weight_alone_is_learned(affine):
    layer = SwitchNorm2d(3, affine=affine, bias=False)
    assert layer.bias is None and (layer.weight is not None) == affine
    assert 'bias' not in layer.state_dict() and ('bias=False' in repr(layer)) == affine
    layer.reset_parameters()
    with torch.no_grad():
        if affine:
            layer.weight.fill_(2.0)
    x = torch.randn(2, 3, 4, 4)
    twin = SwitchNorm2d(3, affine=False)
    torch.testing.assert_close(layer(x), twin(x) * (2 if affine else 1))
    assert copy.deepcopy(layer).bias is None
    with pytest.raises(TypeError):
        SwitchNorm2d(3, 1e-5, 0.1, True, True, SCOPES, True, None, 0, None, None, None, False)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_statistics_recover_from_a_batch_beyond_their_range(dtype):
    """A variance above 65504 is weighted before it is cast."""
    layer, wide = (SwitchNorm2d(3, normalizers='bn', dtype=d) for d in (dtype, torch.float64))
    x = torch.randn(4, 3, 8, 8)
    for scale in (400, 1, 1, 1):
        layer((x * scale).to(dtype))
        wide((x * scale).double())
    torch.testing.assert_close(
        layer.running_var.double(), wide.running_var, rtol=4 * torch.finfo(dtype).eps, atol=0
    )
    assert (layer.running_var > 1000).all()


def test_tracking_stops_where_the_attribute_is_set_to_false():
    """As BatchNorm's; evaluation goes on with the statistics that there are."""
    x = torch.randn(2, 3, 4, 5)
    sn, bn = SwitchNorm2d(3, normalizers='bn'), nn.BatchNorm2d(3)
    for layer in (sn, bn):
        layer.running_mean.fill_(0.5)
        layer.track_running_stats = False
        assert layer(x).mean().abs() < 1e-6
        layer.eval()
    assert_same(dict(sn.named_buffers()), dict(bn.named_buffers()))
    torch.testing.assert_close(sn(x), bn(x))


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('track', [True, False])
def test_state_dict_is_batch_norms_and_two_vectors(track, affine):
    args = {'affine': affine, 'track_running_stats': track}
    sn, bn = SwitchNorm2d(4, **args), nn.BatchNorm2d(4, **args)
    extra = {'mean_weight', 'var_weight'}
    assert set(sn.state_dict()) == set(bn.state_dict()) | extra
    for name, tensor in bn.state_dict().items():
        found = sn.state_dict()[name]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found, tensor)


def test_batch_norm_state_dict_loads_but_for_the_importance_weights():
    bn = randomise(nn.BatchNorm2d(4))
    bn(torch.randn(3, 4, 5, 5))
    sn = SwitchNorm2d(4)
    keys = sn.load_state_dict(bn.state_dict(), strict=False)
    assert sorted(keys.missing_keys) == ['mean_weight', 'var_weight']
    assert not keys.unexpected_keys
    put_weight_on(sn, 'bn')
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(sn.eval()(x), bn.eval()(x))


def test_batch_norm_state_dict_of_old_torch_has_no_counter():
    state = nn.BatchNorm2d(4).state_dict()
    del state['num_batches_tracked']
    state._metadata = {}
    keys = SwitchNorm2d(4).load_state_dict(state, strict=False)
    assert sorted(keys.missing_keys) == ['mean_weight', 'var_weight']


# --- construction ------------------------------------------------------------------------------


def test_defaults():
    sn = SwitchNorm2d(6)
    assert (sn.num_features, sn.eps, sn.momentum, sn.affine) == (6, 1e-5, 0.1, True)
    assert sn.track_running_stats and sn.normalizers == SCOPES
    assert sn.sync is True and sn.process_group is None and sn.correction == 0
    assert {k: tuple(p.shape) for k, p in sn.named_parameters()} == {
        'weight': (6,), 'bias': (6,), 'mean_weight': (3,), 'var_weight': (3,),
    }  # fmt: skip
    assert all((p == (k != 'bias')).all() for k, p in sn.named_parameters())
    expected = nn.BatchNorm2d(6)
    assert_same(dict(sn.named_buffers()), dict(expected.named_buffers()))
    assert sn.importance()['var'] == pytest.approx(dict.fromkeys(SCOPES, 1 / 3))


def test_reset_parameters_restores_the_initial_state():
    sn = trained_layer()
    sn.reset_parameters()
    assert_same(sn.state_dict(), SwitchNorm2d(4).state_dict())


def test_reset_parameters_under_another_default_device():
    sn = trained_layer()
    with torch.device('meta'):
        sn.reset_parameters()
    assert_same(sn.state_dict(), SwitchNorm2d(4).state_dict())


def test_device_and_dtype_of_all_tensors():
    sn = SwitchNorm2d(4, device='meta', dtype=torch.float64)
    floating = [t for t in sn.state_dict().values() if t.is_floating_point()]
    assert len(floating) == 6 and all(t.dtype == torch.float64 for t in floating)
    assert all(t.is_meta for t in sn.state_dict().values())


def test_importance_follows_the_normalizers():
    sn = SwitchNorm2d(4, normalizers=('bn', 'in'))
    assert sn.normalizers == ('in', 'bn') and sn.mean_weight.shape == (2,)
    put_weight_on(sn, 'bn')
    assert sn.importance() == dict.fromkeys(['mean', 'var'], {'in': 0.0, 'bn': 1.0})


def test_repr_names_what_matters():
    text = repr(SwitchNorm2d(4, normalizers=('ln', 'in'), sync=2, correction=1))
    assert text.startswith('SwitchNorm2d(4, eps=1e-05, momentum=0.1, affine=True')
    assert "normalizers=('in', 'ln'), sync=2, correction=1" in text


@pytest.mark.parametrize('layer', [SwitchNorm1d, SwitchNorm2d, SwitchNorm3d])
def test_is_an_instance_norm_and_no_batch_norm(layer):
    """So toolboxes see a norm, and nothing that freezes, fuses or converts BatchNorm grips it."""
    assert issubclass(layer, _InstanceNorm) and not issubclass(layer, _BatchNorm)
    assert layer._abbr_ == 'bn'


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'args, parts',
    [
        ({'normalizers': ('in', 'gn')}, ['normalizers', "('in', 'gn')", "('in', 'ln', 'bn')"]),
        ({'normalizers': ()}, ['normalizers', '()', "('in', 'ln', 'bn')"]),
        ({'normalizers': ('bn', 'bn')}, ['normalizers', "('bn', 'bn')", 'at most once']),
        ({'num_features': 0}, ['num_features', '>= 1', 'got 0']),
        ({'num_features': -3}, ['num_features', '>= 1', 'got -3']),
        ({'num_features': 2.0}, ['num_features', 'int', 'got 2.0']),
        ({'num_features': True}, ['num_features', 'int', 'got True']),
        ({'correction': 1.0}, ['correction', '0 or 1', 'got 1.0']),
        ({'correction': 2}, ['correction', '0 or 1', 'got 2']),
        ({'sync': 0}, ['sync', 'True', 'False', '>= 1', 'got 0']),
        ({'sync': -1}, ['sync', '>= 1', 'got -1']),
        ({'sync': 2.0}, ['sync', 'got 2.0']),
        ({'sync': None}, ['sync', 'got None']),
        ({'sync': 'all'}, ['sync', "got 'all'"]),
        ({'sync': False, 'process_group': object()}, ['process_group', 'sync=True', 'sync=False']),
        ({'sync': 2, 'process_group': object()}, ['process_group', 'sync=True', 'sync=2']),
    ],
)
def test_bad_arguments_are_named(args, parts):
    with pytest.raises(ValueError) as error:
        SwitchNorm2d(**{'num_features': 4, **args})
    assert all(part in str(error.value) for part in parts)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize(
    'layer, wanted, shapes',
    [
        (SwitchNorm1d, '(N, C) or (N, C, L)', [(3,), (2, 4), (2, 4, 5), (2, 3, 4, 4)]),
        (SwitchNorm2d, '(N, C, H, W)', [(2, 3), (3, 4, 4), (2, 4, 5, 5), (2, 3, 4, 4, 4)]),
        (SwitchNorm3d, '(N, C, D, H, W)', [(2, 3, 4, 4), (2, 4, 2, 2, 2), (2, 3, 1, 1, 1, 1)]),
        (SwitchNorm, '(N, C, *S)', [(3,), (2, 4), (4, 2, 3)]),
    ],
)
def test_input_of_another_shape_names_both_shapes(layer, wanted, shapes, training):
    for shape in shapes:
        with pytest.raises(ValueError) as error:
            layer(3).train(training)(torch.randn(shape))
        message = str(error.value)
        assert all(part in message for part in (layer.__name__, wanted, 'C = 3', str(shape)))


def test_integer_input():
    with pytest.raises(TypeError, match='floating point, got torch.int64'):
        SwitchNorm2d(3)(torch.ones(2, 3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize('name, value', [
    ('eps', 1), ('momentum', -0.1), ('momentum', 1.5), ('momentum', None), ('weight', None),
    ('bias', None), ('num_batches_tracked', None), ('running_mean', torch.full((4,), 0.5)),
])  # fmt: skip
def test_attributes_set_later_on_do_what_they_do_in_batch_norm(name, value):
    bn, sn = nn.BatchNorm2d(4), SwitchNorm2d(4, init_importance='bn')
    x = torch.randn(3, 4, 5, 5) * 3 + 2
    for norm in (bn, sn):
        norm(x)
        setattr(norm, name, copy.deepcopy(value))
    for training in (True, False):
        torch.testing.assert_close(sn.train(training)(x), bn.train(training)(x))
    own = sn.state_dict()
    assert_same({key: own[key] for key in bn.state_dict()}, bn.state_dict())


@pytest.mark.parametrize('args', [
    {'eps': 0}, {'eps': -1e-5}, {'sync': 'all'}, {'sync': 0}, {'correction': 2},
    {'process_group': 'all'}, {'normalizers': ['bn', 'gn']}, {'normalizers': []},
])  # fmt: skip
def test_settings_are_checked_where_they_are_set(args):
    (name, value), layer = next(iter(args.items())), SwitchNorm2d(4)
    before = getattr(layer, name)
    with pytest.raises(ValueError) as at_construction:
        SwitchNorm2d(4, **args)
    with pytest.raises(ValueError) as later:
        setattr(layer, name, value)
    assert str(later.value) == str(at_construction.value) and getattr(layer, name) == before


def test_a_process_group_set_later_on_excludes_groups_of_k_ranks():
    layer = SwitchNorm2d(4, sync=2)
    layer.process_group = ProcessGroup(0, 1)
    with pytest.raises(ValueError, match='process_group needs sync=True, got sync=2'):
        layer(torch.randn(2, 4, 3, 3))


def test_normalizers_set_later_on_are_the_same_in_any_order():
    layer = SwitchNorm2d(4, normalizers=('in', 'bn'), init_importance='bn')
    x = torch.randn(2, 4, 3, 3)
    expected = layer(x)
    layer.normalizers = ['bn', 'in']
    assert layer.normalizers == ('in', 'bn') and torch.equal(layer(x), expected)
    for others in (['in', 'ln'], 'bn', SCOPES):  # the first with as many logits
        with pytest.raises(ValueError, match=r"normalizers stay .* \('in', 'bn'\), got"):
            layer.normalizers = others


def test_a_momentum_of_nan_is_not_a_cumulative_average():
    sn = SwitchNorm2d(4)
    sn.momentum, sn.num_batches_tracked = math.nan, None
    sn(torch.randn(2, 4, 3, 3))
    assert sn.running_mean.isnan().all() and sn.running_var.isnan().all()


def test_a_cumulative_average_without_a_counter():
    sn = SwitchNorm2d(4, momentum=None)
    sn.num_batches_tracked = None
    with pytest.raises(ValueError, match='momentum=None .* needs num_batches_tracked'):
        sn(torch.randn(2, 4, 3, 3))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_instance_scope_alone_with_one_position(training):
    sn = SwitchNorm2d(3, normalizers=('in',)).train(training)
    with pytest.raises(ValueError, match=r"normalizers=\('in',\)") as error:
        sn(torch.randn(2, 3, 1, 1))
    assert '(2, 3, 1, 1)' in str(error.value)


def test_an_error_changes_no_running_statistics():
    sn = SwitchNorm2d(3, normalizers=('bn',))
    before = copy.deepcopy(sn.state_dict())
    for bad in (torch.randn(2, 4, 3, 3), torch.randn(1, 3, 1, 1), torch.ones(2, 3, 4, 4).int()):
        with pytest.raises((ValueError, TypeError)):
            sn(bad)
    assert_same(sn.state_dict(), before)


@pytest.mark.parametrize('args', [{'normalizers': ('in', 'ln')}, {'track_running_stats': False}])
def test_bare_batch_norm_weights_load_where_no_statistics_are_kept(args):
    weights = dict(nn.BatchNorm2d(3).state_dict())  # without metadata, as torchvision's files
    weights['weight'] = torch.tensor([1.0, 2.0, 3.0])
    norm = SwitchNorm2d(3, **args)
    result = norm.load_state_dict(weights, strict=False)
    assert set(result.missing_keys) == {'mean_weight', 'var_weight'}
    assert set(result.unexpected_keys) == {'running_mean', 'running_var', 'num_batches_tracked'}
    torch.testing.assert_close(norm.weight.detach(), weights['weight'])
