"""switch_norm against the slow reference, and the promises of its backward pass."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import reference
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sn_mm import equations
from sn_mm.errors import InputError
from sn_mm.functional import canonical_normalizers, switch_norm
from sn_mm.ops import dispatch

SCOPES = ('in', 'ln', 'bn')
SUBSETS = [subset for k in (1, 2, 3) for subset in combinations(SCOPES, k)]
pytestmark = pytest.mark.filterwarnings('error')
FORMATS = [torch.contiguous_format, torch.channels_last]


def cases(*shapes: tuple[int, ...]) -> list[Any]:
    """Every shape with every subset of normalizers, but (N, C) with 'in' alone, an error."""
    return [
        pytest.param(shape, subset, id=f'{"x".join(map(str, shape))}-{"+".join(subset)}')
        for shape in shapes
        for subset in SUBSETS
        if len(shape) > 2 or subset != ('in',)
    ]


# (N, C), (N, C, L), (N, C, H, W) and (N, C, D, H, W)
CASES = cases((3, 2), (2, 2, 3), (2, 2, 2, 2), (2, 2, 2, 1, 2))


def make_state(
    c: int, normalizers: tuple[str, ...] = SCOPES, dtype: torch.dtype = torch.float64, **kw: Any
) -> dict[str, Tensor]:
    """Learnable and running tensors away from their initial values."""
    k = len(normalizers)
    state = {
        'mean_weight': torch.randn(k),
        'var_weight': torch.randn(k),
        'weight': torch.rand(c) + 0.5,
        'bias': torch.randn(c),
        'running_mean': torch.randn(c),
        'running_var': torch.rand(c) + 0.5,
    }
    state = {name: tensor.to(dtype=dtype, **kw) for name, tensor in state.items()}
    for name in ('mean_weight', 'var_weight', 'weight', 'bias'):
        state[name].requires_grad_()
    return state


def copy_state(state: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {
        name: t.detach().clone().to(dtype or t.dtype).requires_grad_(t.requires_grad)
        for name, t in state.items()
    }


def gradients(y: Tensor, dy: Tensor, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {'x': x, **{name: t for name, t in state.items() if t.requires_grad}}
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads)
    }


def check_against_reference(
    x: Tensor,
    state: dict[str, Tensor],
    dy: Tensor | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-9,
    **args: Any,
) -> None:
    """Output, every gradient and the running statistics; the judge computes in float64."""
    x = x.detach().requires_grad_()
    state = copy_state(state)
    dy = torch.randn_like(x) if dy is None else dy
    wide, wide_state = x.detach().double().requires_grad_(), copy_state(state, torch.float64)
    judge = reference.switch_norm([wide], **wide_state, **args)
    expected = gradients(judge.outputs[0], dy, wide, wide_state)
    y = switch_norm(x, **state, **args)
    found = gradients(y, dy, x, state)

    def close(a: Tensor, b: Tensor, what: str) -> None:
        torch.testing.assert_close(
            a.double(), b.double(), rtol=rtol, atol=atol, msg=lambda m: f'{what}: {m}'
        )

    assert y.dtype == x.dtype and y.shape == x.shape
    close(y, judge.outputs[0], 'output')
    for name in expected:
        assert found[name].dtype == (x if name == 'x' else state[name]).dtype
        scale = expected[name].abs().max().clamp(min=1) if expected[name].numel() else 1
        close(found[name] / scale, expected[name] / scale, f'gradient of {name}')
    close(state['running_mean'], judge.running_mean, 'running_mean')
    close(state['running_var'], judge.running_var, 'running_var')


# --- the paper's equations ---------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('correction', [0, 1])
@pytest.mark.parametrize('shape, normalizers', CASES)
def test_equals_the_reference(shape, normalizers, correction, training, device):
    x = torch.randn(shape, dtype=torch.float64, device=device) * 3 + 2
    state = make_state(shape[1], normalizers, device=device)
    check_against_reference(
        x, state, training=training, normalizers=normalizers, correction=correction
    )


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('shape, normalizers', CASES)
def test_gradcheck(shape, normalizers, training):
    state = make_state(shape[1], normalizers)
    running = (None, None) if training else (state['running_mean'], state['running_var'])

    def run(x, mean_weight, var_weight, weight, bias):
        return switch_norm(
            x, mean_weight, var_weight, *running, weight, bias, training, normalizers=normalizers
        )

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    leaves = [state[name] for name in ('mean_weight', 'var_weight', 'weight', 'bias')]
    assert torch.autograd.gradcheck(run, (x, *leaves))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('dims', [4, 5])
def test_gradcheck_channels_last_with_correction(dims, training):
    memory_format = torch.channels_last if dims == 4 else torch.channels_last_3d
    x = torch.randn(2, 2, 2, *[1, 2][5 - dims :], dtype=torch.float64)
    x = x.to(memory_format=memory_format).requires_grad_()
    assert x.dim() == dims and not x.is_contiguous()
    state = make_state(2)

    def run(x, *leaves):
        names = ('mean_weight', 'var_weight', 'weight', 'bias')
        args = {**state, **dict(zip(names, leaves))}
        running = {k: args.pop(k).clone() for k in ('running_mean', 'running_var')}
        return switch_norm(x, **args, **running, training=training, correction=1)

    leaves = [state[name] for name in ('mean_weight', 'var_weight', 'weight', 'bias')]
    assert torch.autograd.gradcheck(run, (x, *leaves))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('size', [(), (1,), (1, 1), (1, 1, 1)], ids=len)
def test_one_position_leaves_instance_statistics_out(size, training):
    state = make_state(5)
    x = torch.randn(4, 5, *size, dtype=torch.float64)
    check_against_reference(x, state, training=training)
    x.requires_grad_()
    y = switch_norm(x, **state, training=training)
    found = gradients(y, torch.randn_like(x), x, state)
    assert found['mean_weight'][0] == found['var_weight'][0] == 0
    rest = {**state, **{k: state[k][1:] for k in ('mean_weight', 'var_weight')}}
    if training:  # the call above has moved them
        rest['running_mean'], rest['running_var'] = torch.zeros(2, 5, dtype=torch.float64)
    assert torch.equal(y, switch_norm(x, **rest, training=training, normalizers=('ln', 'bn')))


def test_correction_feeds_the_unbiased_instance_variance_to_every_scope():
    """As the authors' released code: temp = var_in + mean_in ** 2 with Tensor.var's default."""
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    mean_in, var_in = x.mean((2, 3)), x.var((2, 3))
    temp = var_in + mean_in**2
    mean_bn, var_bn = mean_in.mean(0), temp.mean(0) - mean_in.mean(0) ** 2
    mean_ln, var_ln = mean_in.mean(1), temp.mean(1) - mean_in.mean(1) ** 2
    mean = (mean_in + mean_ln[:, None] + mean_bn) / 3
    var = (var_in + var_ln[:, None] + var_bn) / 3
    expected = (x - mean[..., None, None]) / (var[..., None, None] + 1e-5).sqrt()
    equal, running = torch.ones(3).double(), (torch.zeros(4).double(), torch.ones(4).double())
    y = switch_norm(x, equal, equal, *running, training=True, correction=1)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(running[0], 0.1 * mean_bn)
    torch.testing.assert_close(running[1], 0.9 + 0.1 * var_bn)


def test_instance_and_layer_scopes_ignore_the_rest_of_the_batch():
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    logits = torch.randn(2, 2, dtype=torch.float64)
    whole = switch_norm(x, *logits, training=True, normalizers=('in', 'ln'))
    alone = switch_norm(x[1:2], *logits, training=True, normalizers=('in', 'ln'))
    torch.testing.assert_close(whole[1:2], alone)


def test_equals_the_reference_for_any_shape_and_choice():
    hypothesis = pytest.importorskip('hypothesis')
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=80, deadline=None, derandomize=True)
    @hypothesis.given(data=st.data())
    def check(data):
        dims = data.draw(st.integers(0, 4), 'spatial axes')
        size = data.draw(st.tuples(*[st.integers(0, 4)] * dims), 'size')
        n, c = data.draw(st.integers(0, 4), 'N'), data.draw(st.integers(1, 5), 'C')
        normalizers = data.draw(st.sampled_from(SUBSETS), 'normalizers')
        training = data.draw(st.booleans(), 'training')
        if torch.Size(size).numel() == 1:
            if normalizers == ('in',) or (n == 1 and 'ln' not in normalizers and training):
                return
        dtype = data.draw(st.sampled_from([torch.float64, torch.float32]), 'dtype')
        x = torch.randn(n, c, *size).to(dtype) + data.draw(st.sampled_from([0, 2]), 'offset')
        if dims in (2, 3) and data.draw(st.booleans(), 'channels last'):
            x = x.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
        if dims and data.draw(st.booleans(), 'transposed'):
            x = x.transpose(-1, -2) if dims > 1 else x.transpose(0, 2).contiguous().transpose(0, 2)
        state = make_state(c, normalizers, data.draw(st.sampled_from([torch.float32, dtype])))
        check_against_reference(
            x,
            state,
            rtol=1e-4,
            atol=1e-4 if dtype == torch.float32 else 2e-6,
            training=training,
            normalizers=normalizers,
            correction=data.draw(st.sampled_from([0, 1]), 'correction'),
            eps=0.01,
        )

    check()


# --- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (3, 4, 2, 3, 2), (2, 1, 3, 3), (1, 3, 4, 4)])
def test_channels_last_stays_channels_last(shape, training, device):
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape, dtype=torch.float64, device=device).to(memory_format=memory_format)
    state = make_state(shape[1], device=device)
    check_against_reference(x, state, training=training)
    check_against_reference(x, state, dy=torch.randn(shape, device=device), training=training)
    x.requires_grad_()
    y = switch_norm(x, **state, training=training)
    (dx,) = torch.autograd.grad(y, x, torch.randn(shape, dtype=torch.float64, device=device))
    assert y.is_contiguous(memory_format=memory_format)
    assert dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    'make',
    {
        'transposed': lambda x: x.transpose(2, 3),
        'batch last': lambda x: x.permute(3, 1, 2, 0),
        'every other pixel': lambda x: x[..., ::2, ::2],
        'some channels': lambda x: x[:, 1:],
        'some channels of channels_last': lambda x: x.to(memory_format=torch.channels_last)[:, 1:],
        'some images': lambda x: x[1:],
        'expanded images': lambda x: x[:1].expand(3, -1, -1, -1),
        'expanded pixels': lambda x: x[..., :1].expand(-1, -1, -1, 5),
        'expanded scalar': lambda x: x[0, 0, 0, 0].expand(2, 3, 2, 2),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_non_contiguous_input(make, training):
    x = make[1](torch.randn(3, 4, 4, 6, dtype=torch.float64))
    state = make_state(x.shape[1])
    check_against_reference(x, state, dy=torch.randn(x.shape), training=training)
    base = torch.randn(3, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(x.shape, dtype=torch.float64)
    y = switch_norm(make[1](base), **state)
    (found,) = torch.autograd.grad(y, base, dy)
    (expected,) = torch.autograd.grad(
        reference.switch_norm([make[1](base)], **state, training=False).outputs, base, dy
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
@pytest.mark.parametrize(
    'make',
    {
        'expanded, as from sum()': lambda dy: dy[:1, :1, :1, :1].expand_as(dy),
        'expanded over space, as from mean((2, 3))': lambda dy: dy[..., :1, :1].expand_as(dy),
        'contiguous': lambda dy: dy.contiguous(),
        'channels_last': lambda dy: dy.to(memory_format=torch.channels_last),
        'transposed': lambda dy: dy.transpose(2, 3).contiguous().transpose(2, 3),
    }.items(),
    ids=lambda item: item[0],
)
def test_gradient_of_the_output_in_any_layout(make, memory_format):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=memory_format)
    dy = make[1](torch.randn(2, 3, 4, 5, dtype=torch.float64))
    check_against_reference(x, make_state(3), dy=dy, training=True)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize('name', ['x', 'dy', 'weight', 'bias', 'mean_weight', 'running_mean'])
def test_a_lazy_negation_is_read_as_the_numbers_that_it_stands_for(name, dtype):
    """As ``z.conj().imag`` is: PyTorch notes the minus and leaves the memory as it was."""
    x, dy = torch.randn(2, 2, 3, 4, 5, dtype=dtype).unbind()
    tensors = {'x': x, 'dy': dy, **make_state(3, dtype=dtype)}

    def step(tensors: dict[str, Tensor]) -> list[Tensor]:
        state = {k: t.detach() for k, t in tensors.items()}
        dy, x = state.pop('dy'), state.pop('x').requires_grad_()
        y = switch_norm(x, **state, training=True)
        return [y, *torch.autograd.grad(y, x, dy), state['running_mean']]

    lazy = {k: t.detach().clone() for k, t in tensors.items()}
    lazy[name] = torch._neg_view(-lazy[name])
    torch.testing.assert_close(step(lazy), step(tensors))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_a_lazy_zero_gives_gradients_of_zero(dtype):
    x = torch.randn(2, 3, 4, 5, dtype=dtype, requires_grad=True)
    y = switch_norm(x, **make_state(3, dtype=dtype), training=True)
    y.backward(torch._efficientzerotensor(y.shape, dtype=dtype))
    assert torch.equal(x.grad, torch.zeros_like(x))


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_maps_have_float32_statistics(dtype, memory_format, training, device):
    """Squares of these inputs overflow float16; only the output itself may be rounded."""
    x = (torch.randn(2, 4, 16, 16, device=device) * 200 + 500).to(dtype)
    x = x.to(memory_format=memory_format).requires_grad_()
    state = make_state(4, dtype=torch.float32, device=device)
    state['weight'].data *= 20
    dy = torch.randn(x.shape, device=device).to(dtype)
    wide, wide_state = x.detach().double().requires_grad_(), copy_state(state, torch.float64)
    judge = reference.switch_norm([wide], **wide_state, training=training)
    expected = gradients(judge.outputs[0], dy, wide, wide_state)
    y = switch_norm(x, **state, training=training)
    found = gradients(y, dy, x, state)
    assert y.dtype == found['x'].dtype == dtype
    assert y.is_contiguous(memory_format=memory_format)
    ulp = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(y.double(), judge.outputs[0], rtol=1.01 * ulp, atol=1e-4)
    dx = expected.pop('x')
    torch.testing.assert_close(found.pop('x').double(), dx, rtol=1.01 * ulp, atol=1e-6)
    for name, grad in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), grad, rtol=1e-4, atol=1e-3)
    for name in ('running_mean', 'running_var'):
        torch.testing.assert_close(state[name].double(), getattr(judge, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_parameters_and_buffers(dtype):
    x = torch.randn(4, 3, 8, 8).to(dtype)
    state = make_state(3, dtype=dtype)
    ulp = torch.finfo(dtype).eps
    check_against_reference(x, state, rtol=ulp, atol=ulp, training=True)
    check_against_reference(x, state, rtol=ulp, atol=ulp, training=False)


def test_float64_maps_with_float32_parameters_have_float64_statistics():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64) + 1e6
    state = make_state(3, dtype=torch.float32)
    judge = reference.switch_norm([x], **state).outputs[0]
    torch.testing.assert_close(switch_norm(x, **state, training=True), judge, rtol=0, atol=1e-8)


LAYERS = {
    'in': torch.nn.functional.instance_norm,
    'ln': lambda x: torch.nn.functional.group_norm(x, 1),
    'bn': lambda x: torch.nn.functional.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
@pytest.mark.parametrize('shape', [(4, 8, 32, 32), (2, 3, 200, 200), (64, 16, 4, 4)])
@pytest.mark.parametrize('offset, std', [(1e4, 1.0), (0.0, 1.0), (100.0, 0.1)])
def test_error_is_that_of_torchs_layers(offset, std, shape, memory_format, device):
    """Float32 with |mean| >> std, output and input gradient: within a small factor of the errors of
    nn.BatchNorm2d and of the layers that the scopes come from.
    """
    x = torch.randn(shape, device=device) * std + offset
    dy = torch.randn_like(x) + (x - offset) / std  # also along x - mean

    def run(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = layer(x)
        return y.detach(), torch.autograd.grad(y, x, dy.to(y))[0]

    def errors(layer: Any, judge: Any, x: Tensor) -> Tensor:
        pairs = zip(run(layer, x), run(judge, x.double()))
        return torch.stack([(found - exact).abs().max() for found, exact in pairs])

    own = {k: errors(layer, layer, x) for k, layer in LAYERS.items()}
    x = x.to(memory_format=memory_format)
    batch_norm = errors(LAYERS['bn'], LAYERS['bn'], x)
    for normalizers in SUBSETS:
        logits = torch.ones(len(normalizers), device=device)
        found = errors(
            partial(
                switch_norm,
                mean_weight=logits,
                var_weight=logits,
                training=True,
                normalizers=normalizers,
            ),
            lambda x, k=normalizers, w=logits: reference.switch_norm(
                [x], w, w, normalizers=k
            ).outputs[0],
            x,
        )
        bound = 6 * torch.stack([batch_norm, *(own[k] for k in normalizers)]).amax(0)
        assert (found <= bound).all(), (normalizers, found, bound)


PATHS = ['aten', 'dispatched', 'plain']


def run_path(path: str, x: Tensor, state: dict[str, Tensor], monkeypatch: Any) -> Tensor:
    """switch_norm by the reference backend, by the kernels, or in ordinary operations."""
    if path == 'aten':
        monkeypatch.setattr(dispatch, '_FORCED', 'aten')
    if path == 'plain':
        return equations.switch_norm(
            x, **state, training=True, momentum=1.0, eps=1e-5, normalizers=list(SCOPES),
            correction=0, num_batches_tracked=None,
        )  # fmt: skip
    return switch_norm(x, **state, training=True, momentum=1.0)


@pytest.mark.parametrize('offset', [0.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize('path', PATHS)
def test_digits_far_from_zero_are_no_fewer_than_batch_norms(path, offset, device, monkeypatch):
    x = (torch.randn(4, 8, 16, 16, device=device) + offset).requires_grad_()
    dy = torch.randn_like(x)
    state = make_state(8, dtype=torch.float32, device=device)
    exact = copy_state(state, torch.float64)
    wide = x.detach().double().requires_grad_()
    judge = reference.switch_norm([wide], **exact, training=True, momentum=1.0)
    exact_grads = gradients(judge.outputs[0], dy, wide, exact)
    y = run_path(path, x, state, monkeypatch)
    grads = gradients(y, dy, x, state)

    def batch_norm(x: Tensor) -> list[Tensor]:
        layer = torch.nn.BatchNorm2d(8, momentum=1.0, device=device, dtype=x.dtype)
        x = x.detach().requires_grad_()
        y = layer(x)
        return [y, torch.autograd.grad(y, x, dy.to(x))[0], layer.running_var]

    def error(found: Tensor, target: Tensor) -> float:
        return ((found - target).abs().max() / target.abs().max()).item()

    peer = [error(*pair) for pair in zip(batch_norm(x), batch_norm(x.double()))]
    own = [
        error(y, judge.outputs[0]),
        error(grads['x'], exact_grads['x']),
        error(state['running_var'], judge.running_var),
    ]
    for name, ours, theirs in zip(('y', 'dx', 'running_var'), own, peer):
        assert ours <= max(2 * theirs, 1e-6), (name, ours, theirs)


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('path', PATHS)
def test_where_batch_norm_is_not_finite_neither_is_sn(path, value, device, monkeypatch):
    x = torch.randn(3, 4, 5, 5, device=device)
    x[1, 2, 3, 0] = value
    dy = torch.randn_like(x)
    peer = torch.nn.BatchNorm2d(4, momentum=1.0, device=device)
    peer_x = x.clone().requires_grad_()
    peer_y = peer(peer_x)
    peer_y.backward(dy)
    x.requires_grad_()
    state = make_state(4, dtype=torch.float32, device=device)
    y = run_path(path, x, state, monkeypatch)
    found = gradients(y, dy, x, state)
    pairs = [(y, peer_y), (found['x'], peer_x.grad), (found['weight'], peer.weight.grad)]
    pairs += [(state[k], getattr(peer, k)) for k in ('running_mean', 'running_var')]
    for ours, theirs in pairs:
        assert not ours[~theirs.isfinite()].isfinite().any()
    assert not y[1].isfinite().any(), 'the layer scope has all channels of the image'
    others = torch.tensor([0, 2], device=device)
    channels = torch.tensor([0, 1, 3], device=device)
    assert y[others][:, channels].isfinite().all(), 'no scope of theirs holds the value'
    assert state['running_mean'][channels].isfinite().all()
    for name in ('mean_weight', 'var_weight'):
        assert not found[name].isfinite().any()


@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('value', [0.0, 1.0, 1e4, -0.3])
def test_constant_maps_give_finite_outputs_and_gradients(value, dtype, memory_format, device):
    x = torch.full((2, 3, 7, 5), value, dtype=dtype, device=device)
    x = x.to(memory_format=memory_format).requires_grad_()
    state = make_state(3, dtype=torch.float32, device=device)
    y = switch_norm(x, **state, training=True)
    found = gradients(y, torch.randn_like(x), x, state)
    bias = state['bias'][:, None, None].expand(2, 3, 7, 5)
    # The mean of equal float32 numbers may miss them by rounding, at 1 / sqrt(eps) = 316.
    torch.testing.assert_close(y.float(), bias, rtol=2e-3, atol=2e-3 + abs(value) * 1e-4)
    for name, grad in {**found, 'running_var': state['running_var']}.items():
        assert grad.isfinite().all(), name


def test_one_constant_channel_among_others():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    x[:, 1] = 5
    for normalizers in SUBSETS:
        state = make_state(3, normalizers)
        check_against_reference(x, state, rtol=1e-7, training=True, normalizers=normalizers)


def test_the_argument_name_is_deprecated():
    x, state = torch.randn(2, 3, 4), make_state(3)
    with pytest.warns(DeprecationWarning, match='goes with version 1.2'):
        y = switch_norm(x, **state, name='bn1')
    assert torch.equal(y, switch_norm(x, **state))


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'shape', [(1, 3, 4, 4), (3, 1, 4, 4), (1, 1, 2, 2), (5000, 2, 2, 1), (1, 2000, 1, 2)]
)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_extreme_sizes(shape, training):
    x = torch.randn(shape, dtype=torch.float64)
    check_against_reference(x, make_state(shape[1]), training=training)


@pytest.mark.parametrize(
    'shape, normalizers', cases((0, 3), (0, 3, 4), (0, 3, 4, 4), (2, 3, 0, 4), (0, 3, 2, 2, 2))
)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_empty_batch(shape, normalizers, training):
    x = torch.randn(shape, dtype=torch.float64)
    state = make_state(3, normalizers)
    before = {name: state[name].clone() for name in ('running_mean', 'running_var')}
    count = torch.tensor(7)
    check_against_reference(x, state, training=training, normalizers=normalizers)
    x.requires_grad_()
    y = switch_norm(
        x, **state, training=training, normalizers=normalizers, num_batches_tracked=count
    )
    found = gradients(y, torch.randn(shape), x, state)
    assert y.shape == x.shape
    assert all((grad == 0).all() for grad in found.values())
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert count == 7


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_no_channels(training):
    x = torch.randn(2, 0, 3, requires_grad=True)
    y = switch_norm(x, **make_state(0), training=training)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    'defaults',
    [
        partial(default_dtype, torch.float64),
        partial(default_dtype, torch.float16),
        partial(torch.device, 'meta'),
    ],
    ids=['float64', 'float16', 'meta'],
)
def test_defaults_of_the_process_change_nothing(defaults, device):
    """Nothing that a pass allocates takes its dtype or its device from them."""
    x, dy = torch.randn(2, 2, 64, 5, 5, device=device).unbind()
    x.requires_grad_()
    state = make_state(64, dtype=torch.float32, device=device)

    def step() -> list[Tensor]:
        moved = copy_state(state)
        y = switch_norm(x, **moved, training=True)
        return [y, *gradients(y, dy, x, moved).values(), moved['running_var']]

    expected = step()
    with defaults():
        found = step()
    assert all(map(torch.equal, found, expected))


# --- autograd ----------------------------------------------------------------------------------


@pytest.mark.parametrize('frozen', range(32))
def test_frozen_tensors_change_no_other_gradient(frozen):
    names = ['x', 'mean_weight', 'var_weight', 'weight', 'bias']
    tensors = {'x': torch.randn(2, 3, 4, 4, dtype=torch.float64), **make_state(3)}
    dy = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def run(learned: list[str]) -> dict[str, Tensor | None]:
        leaves = {k: t.detach().clone().requires_grad_(k in learned) for k, t in tensors.items()}
        args = dict(leaves)
        y = switch_norm(args.pop('x'), **args, training=True)
        assert y.requires_grad == bool(learned)
        if learned:
            y.backward(dy)
        return {k: leaves[k].grad for k in names}

    everything = run(names)
    learned = [name for i, name in enumerate(names) if not frozen >> i & 1]
    for name, grad in run(learned).items():
        assert (grad is None) == (name not in learned)
        assert grad is None or torch.equal(grad, everything[name])


def test_backward_twice_with_retain_graph():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    state = make_state(3)
    y = switch_norm(x, **state, training=True)
    first = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, x, torch.ones_like(y))[0])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_saved_tensors_may_come_back_in_another_layout(dtype):
    """From hooks that offload or compress them."""
    x = torch.randn(2, 3, 4, 5, dtype=dtype, requires_grad=True)
    state = make_state(3, dtype=dtype)
    dy = torch.randn_like(x)
    expected = gradients(switch_norm(x, **copy_state(state), training=True), dy, x, {})

    def transposed(t: Tensor) -> Tensor:
        return t.mT.contiguous().mT if t.dim() > 1 else t

    with saved_tensors_hooks(transposed, transposed):
        y = switch_norm(x, **state, training=True)
    torch.testing.assert_close(gradients(y, dy, x, {}), expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize('saved', [torch.float16, torch.float32, torch.float64], ids=str)
def test_saved_tensors_may_come_back_in_another_dtype(dtype, saved):
    x = torch.randn(2, 3, 4, 5, dtype=dtype, requires_grad=True)
    state = make_state(3, dtype=dtype)
    dy = torch.randn_like(x)
    expected = gradients(switch_norm(x, **copy_state(state), training=True), dy, x, {})
    with saved_tensors_hooks(lambda t: t.to(saved), lambda t: t):
        y = switch_norm(x, **state, training=True)
    torch.testing.assert_close(gradients(y, dy, x, {}), expected, rtol=0.05, atol=0.05)


def test_input_changed_before_backward_raises():
    x = torch.randn(2, 3, 4, 4, requires_grad=True) * 1
    y = switch_norm(x, **make_state(3, dtype=torch.float32), training=True)
    x.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()


class _Allocations(TorchDispatchMode):
    """Storages that came out of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self, without: Iterable[Tensor]) -> int:
        known = {t.untyped_storage()._cdata for t in without}
        return sum(
            size
            for storage, (ref, size) in self.storages.items()
            if storage not in known and not ref.expired()
        )


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('grad', [True, False], ids=['grad', 'no_grad'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
def test_backward_keeps_the_input_and_little_else(memory_format, dtype, grad, training):
    x = torch.randn(4, 16, 64, 64).to(dtype).to(memory_format=memory_format).requires_grad_()
    state = make_state(16, dtype=torch.float32)
    size = x.untyped_storage().nbytes()
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    allocations = _Allocations()
    with saved_tensors_hooks(pack, lambda t: t), nullcontext() if grad else torch.no_grad():
        with allocations:
            y = switch_norm(x, **state, training=training)
    extra = allocations.alive(without=[x, y, *state.values()])
    if grad:
        assert size <= sum(saved.values()) <= 1.02 * size
        assert 0 < extra <= 0.02 * size  # whoever keeps it, hooks see it or not
    else:
        assert not saved and extra == 0


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_the_input_is_freed_with_the_output(training):
    """Without waiting for Python's garbage collector: nothing refers to itself."""
    gc.collect()
    gc.disable()
    try:
        x = torch.randn(2, 3, 4, 4, requires_grad=True) * 1
        ref = weakref.ref(x)
        y = switch_norm(x, **make_state(3), training=training)
        del x
        assert ref() is not None
        del y
        assert ref() is None
    finally:
        gc.enable()


@pytest.mark.parametrize('memory_format', FORMATS, ids=str)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_output_is_no_view_and_may_be_changed_in_place(memory_format, training):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=memory_format)
    x.requires_grad_()
    state, dy = make_state(3), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    y = switch_norm(x, **state, training=training)
    assert not y._is_view() and y._base is None
    assert y.untyped_storage().nbytes() == x.untyped_storage().nbytes()
    expected = gradients(torch.relu(y), dy, x, state)
    state = copy_state(state)
    z = torch.relu_(switch_norm(x, **state, training=training))
    found = gradients(z, dy, x, state)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


# --- running statistics ------------------------------------------------------------------------


def test_running_statistics_stay_without_the_batch_scope():
    state = make_state(3, ('in', 'ln'))
    before = state['running_mean'].clone(), state['running_var'].clone()
    switch_norm(torch.randn(2, 3, 4).double(), **state, training=True, normalizers=('in', 'ln'))
    assert torch.equal(state['running_mean'], before[0])
    assert torch.equal(state['running_var'], before[1])


def test_evaluation_moves_no_running_statistics():
    state, count = make_state(3), torch.tensor(0)
    before = state['running_mean'].clone(), state['running_var'].clone()
    switch_norm(torch.randn(2, 3, 4).double(), **state, num_batches_tracked=count)
    assert torch.equal(state['running_mean'], before[0])
    assert torch.equal(state['running_var'], before[1])
    assert count == 0


# --- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'given', [('bn', 'in', 'ln'), ['ln', 'bn', 'in'], iter(('bn', 'ln', 'in'))]
)
def test_normalizers_have_one_order(given):
    assert canonical_normalizers(given) == ('in', 'ln', 'bn')


def test_a_single_name_is_a_normalizer():
    assert canonical_normalizers('bn') == ('bn',)


@pytest.mark.parametrize(
    'given', [(), ('xx',), ('in', 'gn'), ('bn', 'bn'), ('in', 'ln', 'bn', 'in')]
)
def test_bad_normalizers_are_named(given):
    with pytest.raises(ValueError) as error:
        canonical_normalizers(given)
    assert 'normalizers' in str(error.value) and str(given) in str(error.value)
    assert "('in', 'ln', 'bn')" in str(error.value)
    with pytest.raises(ValueError, match='normalizers'):
        switch_norm(torch.randn(2, 3, 4), torch.ones(3), torch.ones(3), normalizers=given)


X = torch.ones(2, 3, 4, 4)
W = torch.ones(3)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_only_floating_point_input(dtype, training):
    with pytest.raises(TypeError, match=f'floating point, got {dtype}'):
        switch_norm(X.to(dtype), W, W, W, W, training=training)


@pytest.mark.parametrize('shape', [(), (3,)])
def test_input_without_batch_or_channels(shape):
    with pytest.raises(ValueError) as error:
        switch_norm(torch.ones(shape), W, W, training=True)
    assert '(N, C, *S)' in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize('name', ['weight', 'bias', 'running_mean', 'running_var'])
def test_tensors_per_channel_must_fit_the_input(name):
    args = {'running_mean': W, 'running_var': W, 'weight': W, 'bias': W, name: torch.ones(4)}
    with pytest.raises(ValueError) as error:
        switch_norm(X, W, W, **args)
    assert all(part in str(error.value) for part in (name, '(4,)', '(2, 3, 4, 4)', '(3,)'))


@pytest.mark.parametrize('name', ['mean_weight', 'var_weight'])
def test_importance_must_fit_the_normalizers(name):
    args = {'mean_weight': torch.ones(2), 'var_weight': torch.ones(2), name: W}
    with pytest.raises(ValueError) as error:
        switch_norm(X, **args, training=True, normalizers=('in', 'ln'))
    assert all(part in str(error.value) for part in (name, "('in', 'ln')", '(3,)'))


@pytest.mark.parametrize(
    'name', ['mean_weight', 'var_weight', 'weight', 'bias', 'running_mean', 'running_var']
)
def test_all_tensors_must_be_on_one_device(name):
    state = make_state(3, dtype=torch.float32)
    state[name] = state[name].detach().to('meta')
    with pytest.raises(ValueError, match=f'input is on cpu, {name} on meta'):
        switch_norm(torch.randn(2, 3, 4), **state, training=True)


@pytest.mark.parametrize('given', ['running_mean', 'running_var'])
def test_running_statistics_come_together(given):
    with pytest.raises(ValueError, match='running_mean and running_var must be given together'):
        switch_norm(X, W, W, **{given: W}, training=True)


def test_evaluation_needs_running_statistics():
    with pytest.raises(ValueError, match='needs running_mean and running_var'):
        switch_norm(X, W, W)


def test_cumulative_average_needs_a_counter():
    with pytest.raises(ValueError, match='momentum=None .* needs num_batches_tracked'):
        switch_norm(X, W, W, W.clone(), W.clone(), training=True, momentum=None)


@pytest.mark.parametrize('correction', [2, -1, 0.5, 1.0, None])
def test_correction_is_0_or_1(correction):
    with pytest.raises(ValueError, match=f'correction must be 0 or 1, got {correction}'):
        switch_norm(X, W, W, training=True, correction=correction)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 1), (2, 3, 1, 1), (2, 3, 1, 1, 1)])
def test_instance_scope_alone_needs_more_than_one_position(shape, training):
    with pytest.raises(ValueError) as error:
        switch_norm(torch.ones(shape), W[:1], W[:1], training=training, normalizers=('in',))
    assert "normalizers=('in',)" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize('normalizers', [('bn',), ('in', 'bn')])
@pytest.mark.parametrize('shape', [(1, 3), (1, 3, 1, 1)])
def test_batch_scope_alone_needs_more_than_one_value_in_training(shape, normalizers):
    """As nn.BatchNorm, which refuses it too: the output would be the bias."""
    logits = W[: len(normalizers)]
    args = {'running_mean': W.clone(), 'running_var': W.clone(), 'normalizers': normalizers}
    with pytest.raises(ValueError, match='more than one value per channel') as error:
        switch_norm(torch.ones(shape), logits, logits, training=True, **args)
    assert str(shape) in str(error.value)
    switch_norm(torch.ones(shape), logits, logits, **args)


@pytest.mark.parametrize(
    ('counter', 'said'),
    [(3, 'got 3'), (torch.zeros(2), 'one number'), (torch.zeros((), device='meta'), 'is on meta')],
)
def test_a_counter_of_batches_that_kernels_cannot_count_in_is_refused(counter, said):
    x, statistics = torch.randn(2, 4, 3, 3), (torch.zeros(4), torch.ones(4))
    with pytest.raises(InputError, match=said):
        switch_norm(
            x, torch.ones(3), torch.ones(3), *statistics, training=True, num_batches_tracked=counter
        )
