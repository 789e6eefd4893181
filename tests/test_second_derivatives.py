"""Second derivatives and the transforms of ``torch.func``, by the plain path."""

from __future__ import annotations

import itertools

import pytest
import reference
import torch
from torch import Tensor, nn

from sn_mm import SwitchNorm1d, SwitchNorm2d
from sn_mm.layer import SwitchNorm

SCOPES = ('in', 'ln', 'bn')
SUBSETS = [s for k in (1, 2, 3) for s in itertools.combinations(SCOPES, k)]


def layer_of(
    normalizers: tuple[str, ...], kind: type[SwitchNorm] = SwitchNorm2d, **args
) -> SwitchNorm:
    layer = kind(3, normalizers=normalizers, dtype=torch.float64, **args)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(1, 0.5)
        if layer.running_mean is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return layer


def with_parameters(layer: SwitchNorm):
    """The layer as a function of its input and its parameters."""
    names = [name for name, _ in layer.named_parameters()]
    return lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x,))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('shape', [(2, 3, 2, 2), (3, 3, 1, 1)], ids=str)
@pytest.mark.parametrize('normalizers', SUBSETS, ids='+'.join)
def test_second_derivatives_in_all_inputs(normalizers, shape, training):
    if normalizers == ('in',) and shape[2:] == (1, 1):
        pytest.skip('one position has no instance statistics')
    layer = layer_of(normalizers, momentum=0.0).train(training)
    inputs = torch.randn(shape, dtype=torch.float64), *(p.detach() for p in layer.parameters())
    assert torch.autograd.gradgradcheck(
        with_parameters(layer), [t.clone().requires_grad_() for t in inputs]
    )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_a_gradient_penalty_is_that_of_ordinary_operations(dtype):
    conv = nn.Conv2d(2, 3, 3, dtype=dtype)
    layer = layer_of(SCOPES).to(dtype)
    x = torch.randn(2, 2, 6, 6, dtype=dtype, requires_grad=True)

    def penalty(norm) -> Tensor:
        y = norm(conv(x))
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad((dx.square().sum() - 1).square(), conv.weight)[0]

    params = dict(layer.named_parameters())
    truth = penalty(lambda z: reference.switch_norm([z], **params).outputs[0])
    torch.testing.assert_close(penalty(layer), truth.to(dtype), rtol=1e-4, atol=1e-4)


def test_a_penalty_where_the_gradient_of_the_output_needs_none():
    """``dy`` is then a constant, and the graph goes on through the input only."""
    layer = layer_of(SCOPES)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
    assert dx.requires_grad
    judge = reference.switch_norm([x], **dict(layer.named_parameters())).outputs[0]
    (expected,) = torch.autograd.grad(judge, x, dy, create_graph=True)
    for found, wanted in zip(
        torch.autograd.grad(dx.square().sum(), [x, *layer.parameters()], allow_unused=True),
        torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()], allow_unused=True),
    ):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted)


def test_first_derivatives_are_the_same_with_and_without_a_graph_of_their_own():
    layer = layer_of(SCOPES)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    one = torch.autograd.grad(layer(x).square().sum(), inputs)
    two = torch.autograd.grad(layer(x).square().sum(), inputs, create_graph=True)
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b)
    assert layer.num_batches_tracked == 2


@pytest.mark.skipif(
    not hasattr(torch._C._functorch, 'is_legacy_batchedtensor'),
    reason='this torch does not tell such batches',
)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_a_batch_of_gradients_gives_those_of_a_loop(dtype, training):
    """``is_grads_batched=True``, as ``jacobian(vectorize=True)`` calls it."""
    layer = layer_of(SCOPES).to(dtype).train(training)
    x = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    y, inputs = layer(x), [x, *layer.parameters()]
    batch = torch.randn(5, *y.shape, dtype=dtype)
    found = torch.autograd.grad(y, inputs, batch, retain_graph=True, is_grads_batched=True)
    loop = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in batch]
    for grads, expected in zip(found, zip(*loop)):
        assert not grads.requires_grad
        torch.testing.assert_close(grads, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_forward_mode_goes_through_the_backward_pass(dtype):
    layer = layer_of(SCOPES).to(dtype)
    x = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    y = layer(x)
    dy, tangent = torch.randn(2, *y.shape, dtype=dtype)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(dy, tangent)
        (dx,) = torch.autograd.grad(y, x, dual, retain_graph=True)
        found = torch.autograd.forward_ad.unpack_dual(dx).tangent
    (expected,) = torch.autograd.grad(y, x, tangent)  # dx is linear in dy
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- torch.func --------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_grad_and_functional_call_give_autograds_gradients(training):
    layer = layer_of(SCOPES, track_running_stats=not training).train(training)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    params = {k: p.detach() for k, p in layer.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, params, (x,)).square().sum()

    found = torch.func.grad(loss)(params)
    layer(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_grad_moves_the_running_statistics_as_batch_norm_does():
    """Those that are arguments; to move captured ones, torch.func refuses for both layers."""
    layers = layer_of(('bn',), momentum=0.3), nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for layer in layers:
        layer.reset_running_stats()
        state = dict(layer.named_parameters()), dict(layer.named_buffers())

        def loss(params: dict, buffers: dict, layer: nn.Module = layer) -> Tensor:
            return torch.func.functional_call(layer, (params, buffers), (x,)).square().sum()

        torch.func.grad(loss)(*state)
        with pytest.raises(RuntimeError, match='captured'):
            torch.func.grad(lambda x: layer(x).sum())(x)  # noqa: B023
    for name, buffer in layers[1].named_buffers():
        torch.testing.assert_close(getattr(layers[0], name), buffer)


@pytest.mark.parametrize('normalizers', SUBSETS, ids='+'.join)
def test_vmap_over_batches_is_a_loop_over_them(normalizers):
    layer = layer_of(normalizers, track_running_stats=False)
    x = torch.randn(5, 2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(b) for b in x]))
    if 'bn' in normalizers:
        layer = layer_of(normalizers).eval()
        torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(b) for b in x]))


def test_vmap_refuses_to_move_running_statistics_as_batch_norm_does():
    for layer in (layer_of(SCOPES), nn.BatchNorm2d(3, dtype=torch.float64)):
        with pytest.raises((RuntimeError, ValueError)):
            torch.func.vmap(layer)(torch.randn(5, 2, 3, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('normalizers', SUBSETS, ids='+'.join)
def test_forward_mode_agrees_with_reverse_mode(normalizers, training):
    layer = layer_of(normalizers, track_running_stats=not training).train(training)
    x, tangent = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    _, found = torch.func.jvp(layer, (x,), (tangent,))
    jacobian = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(found, torch.tensordot(jacobian, tangent, 4))
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, found)


def test_per_sample_gradients_of_a_network():
    net = nn.Sequential(nn.Linear(4, 3), SwitchNorm1d(3, normalizers=('ln',))).double()
    params = {k: p.detach() for k, p in net.named_parameters()}
    x = torch.randn(5, 4, dtype=torch.float64)

    def loss(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(net, params, (sample[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for i, sample in enumerate(x):
        net.zero_grad()
        net(sample[None]).square().sum().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(found[name][i], p.grad)
