"""What torch's public tests check of its normalization layers, checked of SN.

docs/records/peer_tests.md lists all of it, with the tests elsewhere that check the rest.
"""

from __future__ import annotations

import copy
import io
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from sn_mm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from sn_mm.functional import switch_norm

INPUTS = {
    SwitchNorm1d: [(4, 3), (4, 3, 5)],
    SwitchNorm2d: [(4, 3, 5, 2)],
    SwitchNorm3d: [(4, 3, 2, 5, 2)],
}
ANY = [
    pytest.param(layer, shape, id=f'{layer.__name__}-{len(shape)}')
    for layer, shapes in INPUTS.items()
    for shape in shapes
]


def learned(layer: SwitchNorm) -> SwitchNorm:
    """With parameters away from their initial values."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def equal(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# --- running statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize('layer, shape', ANY)
def test_momentum_moves_the_running_statistics(layer, shape):
    sn, x = layer(3, momentum=0.2), torch.randn(shape) * 3 + 1
    sn(x)
    rows = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(sn.running_mean, 0.2 * rows.mean(1))
    torch.testing.assert_close(sn.running_var, 0.8 + 0.2 * rows.var(1))
    assert sn.num_batches_tracked == 1


@pytest.mark.parametrize('layer, shape', ANY)
def test_momentum_none_is_the_simple_average(layer, shape):
    sn, once = layer(3, momentum=None), layer(3, momentum=1.0)
    found = []
    for _ in range(5):
        x = torch.randn(shape)
        sn(x), once(x)
        found.append((once.running_mean.clone(), once.running_var.clone()))
    for running, each in zip((sn.running_mean, sn.running_var), zip(*found)):
        torch.testing.assert_close(running, torch.stack(each).mean(0))
    sn.reset_running_stats()
    assert sn.num_batches_tracked == 0 and (sn.running_mean == 0).all()


@pytest.mark.parametrize('layer, shape', ANY)
def test_evaluation_moves_nothing_and_repeats(layer, shape):
    sn = learned(layer(3))
    sn(torch.randn(shape))
    before = copy.deepcopy(sn.eval().state_dict())
    x = torch.randn(shape)
    equal(sn(x), sn(x))
    equal(dict(sn.state_dict()), dict(before))


@pytest.mark.parametrize('layer, shape', ANY)
def test_without_tracking_evaluation_is_training(layer, shape):
    sn = learned(layer(3, track_running_stats=False))
    x = torch.randn(shape)
    equal(sn(x), sn.eval()(x))
    assert not list(sn.buffers())
    assert set(sn.state_dict()) == {'weight', 'bias', 'mean_weight', 'var_weight'}


@pytest.mark.parametrize('layer, shape', ANY)
def test_affine_false_has_no_weight_and_no_bias(layer, shape):
    sn, full = layer(3, affine=False), layer(3)
    x = torch.randn(shape, requires_grad=True)
    assert sn.weight is None and sn.bias is None
    equal(sn(x), full(x))
    sn.reset_parameters()
    (sn(x).square() * x).sum().backward()
    assert x.grad.isfinite().all() and sn.mean_weight.grad.isfinite().all()


def test_no_grad_context_still_tracks():
    sn = SwitchNorm2d(3, momentum=1.0)
    with torch.no_grad():
        x = torch.randn(2, 3, 4, 4)
        assert not sn(x).requires_grad
    torch.testing.assert_close(sn.running_mean, x.mean((0, 2, 3)))


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('name', ['running_mean', 'running_var'])
def test_running_statistics_with_a_forward_gradient(name, training):
    """BatchNorm refuses them in training; they move in ordinary operations here."""
    x, logits = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    buffers = {'running_mean': torch.randn(3).double(), 'running_var': torch.rand(3).double() + 1}
    tangent = torch.randn(3, dtype=torch.float64)

    def run(step: float, dual: bool = False) -> tuple[Tensor, Tensor]:
        given = {k: b.clone() for k, b in buffers.items()}
        given[name] = given[name] + step * tangent
        if dual:
            given[name] = fwAD.make_dual(given[name], tangent.clone())
        return switch_norm(x, logits, logits, **given, training=training), given[name]

    with fwAD.dual_level():
        found = [fwAD.unpack_dual(t).tangent for t in run(0.0, dual=True)]
    found = [torch.zeros(()) if t is None else t for t in found]
    for ours, after, before in zip(found, run(1e-5), run(-1e-5)):
        slope = (after - before) / 2e-5
        torch.testing.assert_close(ours.expand_as(slope).to(slope), slope, rtol=1e-5, atol=1e-8)


# --- state ----------------------------------------------------------------------------------------


def test_a_state_without_the_counter_keeps_the_layers_own():
    sn, bn = SwitchNorm2d(3), nn.BatchNorm2d(3)
    for norm in (sn, bn):
        norm.num_batches_tracked = torch.tensor(10)
        norm.load_state_dict(OrderedDict(), strict=False)
    assert sn.num_batches_tracked == bn.num_batches_tracked  # 10 from torch 2.2 on


def test_a_state_without_the_counter_gives_a_meta_layer_zero():
    with torch.device('meta'):
        sn = SwitchNorm2d(3)
    sn.load_state_dict(OrderedDict(), assign=True, strict=False)
    assert sn.state_dict()['num_batches_tracked'] == 0


@pytest.mark.parametrize('version', [None, 1])
def test_states_of_version_1_have_no_counter(version):
    state = SwitchNorm2d(3, momentum=0.5).state_dict()
    assert state._metadata['']['version'] == nn.BatchNorm2d(3).state_dict()._metadata['']['version']
    del state['num_batches_tracked']
    state._metadata['']['version'] = version
    SwitchNorm2d(3).load_state_dict(state, strict=True)


def test_states_of_version_2_miss_the_counter():
    state = SwitchNorm2d(3).state_dict()
    del state['num_batches_tracked']
    with pytest.raises(RuntimeError, match='num_batches_tracked'):
        SwitchNorm2d(3).load_state_dict(state, strict=True)


def test_a_state_is_read_with_weights_only():
    sn, file = learned(SwitchNorm2d(3)), io.BytesIO()
    sn(torch.randn(2, 3, 4, 4))
    torch.save(sn.state_dict(), file)
    file.seek(0)
    twin = SwitchNorm2d(3)
    twin.load_state_dict(torch.load(file, weights_only=True))
    equal(dict(twin.state_dict()), dict(sn.state_dict()))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_moves_leave_the_counter_an_integer(dtype):
    sn = SwitchNorm2d(3).to(dtype)
    assert {p.dtype for p in sn.parameters()} == {sn.running_var.dtype} == {dtype}
    assert sn.num_batches_tracked.dtype == torch.int64
    assert sn(torch.randn(2, 3, 4, 4, dtype=dtype)).dtype == dtype


def test_device_moves(device):
    sn = learned(SwitchNorm2d(3))
    twin = copy.deepcopy(sn).to('meta').to_empty(device=device)
    twin.load_state_dict(sn.state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(twin(x.to(device)).cpu(), sn(x))
    assert {t.device.type for t in twin.state_dict().values()} == {device.type}


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_a_channels_last_model_keeps_its_format(training):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), SwitchNorm2d(8), nn.Conv2d(8, 2, 1)).train(training)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    between = model[:2](x.to(memory_format=torch.channels_last))
    assert between.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model[2](between), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_of_nearly_a_million():
    x = torch.randn(880_801, 1) * 2 + 3
    sn, bn = SwitchNorm1d(1, normalizers=['bn']), nn.BatchNorm1d(1)
    torch.testing.assert_close(sn(x), bn.double()(x.double()).float())
    for name in ('running_mean', 'running_var'):
        torch.testing.assert_close(getattr(sn, name), getattr(bn, name).float())


@pytest.mark.parametrize('layer, shape', ANY)
@pytest.mark.parametrize('scope, axes', [('in', 2), ('ln', 1), ('bn', None)])
def test_output_has_mean_0_and_variance_1_over_each_scope(layer, shape, scope, axes):
    if scope == 'in' and len(shape) == 2:
        return
    y = layer(3, normalizers=[scope])(torch.randn(shape) * 4 + 7)
    y = y.transpose(0, 1).flatten(1) if axes is None else y.flatten(axes)
    torch.testing.assert_close(y.mean(-1), torch.zeros(y.shape[:-1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(y.shape[:-1]), rtol=0, atol=1e-3)


def test_channels_must_be_those_of_the_layer():
    for layer, shapes in INPUTS.items():
        for shape in shapes:
            with pytest.raises(ValueError, match='C = 4'):
                layer(4)(torch.randn(shape))


def test_input_without_a_batch_is_refused():
    """InstanceNorm takes (C, L), (C, H, W) and (C, D, H, W): no batch scope could."""
    for layer, shape in ((SwitchNorm2d, (3, 5, 2)), (SwitchNorm3d, (3, 2, 5, 2))):
        with pytest.raises(ValueError, match='needs input of shape'):
            layer(3)(torch.randn(shape))


@pytest.mark.parametrize('size', [(1, 3), (1, 3, 1)])
def test_one_value_per_channel(size):
    """BatchNorm refuses it in training; here the layer scope has a variance, so SN takes it."""
    x = torch.randn(size)
    with pytest.raises(ValueError, match='more than 1 value'):
        nn.BatchNorm1d(3)(x)
    assert SwitchNorm1d(3)(x).isfinite().all()
    with pytest.raises(ValueError, match='more than one value'):
        SwitchNorm1d(3, normalizers=['bn'])(x)


def test_complex_input_is_refused():
    for layer in (nn.BatchNorm2d(3), SwitchNorm2d(3)):
        with pytest.raises((RuntimeError, TypeError)):
            layer(torch.randn(2, 3, 4, 4, dtype=torch.complex64))


# --- derivatives ----------------------------------------------------------------------------------


def test_a_gradient_penalty_is_batch_norms():
    """All weight on the batch scope; torch.nn.BatchNorm2d is the judge."""
    penalties = []
    for norm in (SwitchNorm2d(3, normalizers=['bn']), nn.BatchNorm2d(3)):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(2, 3, 2), norm, nn.Tanh()).double()
        x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        penalties.append([x.grad, model[0].weight.grad, norm.weight.grad])
    torch.testing.assert_close(*penalties)


def test_gradient_in_evaluation_is_a_scale():
    sn = learned(SwitchNorm2d(3, normalizers=['bn'])).eval()
    nn.init.uniform_(sn.running_var, 0.5, 2)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    dy = torch.randn_like(x)
    sn(x).backward(dy)
    scale = sn.weight / (sn.running_var + float(sn.eps)).sqrt()
    torch.testing.assert_close(x.grad, dy * scale.view(3, 1, 1))


# --- torch.func -----------------------------------------------------------------------------------


def network() -> nn.Module:
    norm = learned(SwitchNorm2d(3))
    return nn.Sequential(nn.Conv2d(2, 3, 2), norm, nn.Flatten(), nn.LazyLinear(2)).eval()


def test_an_ensemble_in_evaluation():
    x = torch.randn(5, 2, 4, 4)
    models = [network() for _ in range(3)]
    expected = torch.stack([model(x) for model in models])
    params, buffers = torch.func.stack_module_state(models)
    one = models[0]

    def call(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(one, (params, buffers), (x,))

    torch.testing.assert_close(torch.func.vmap(call)(params, buffers), expected)


def test_per_sample_gradients_in_evaluation():
    model, x = network(), torch.randn(4, 2, 4, 4)
    model(x)
    params = {k: p.detach() for k, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (sample[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    for i, sample in enumerate(x):
        model.zero_grad()
        model(sample[None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(grads[name][i], parameter.grad, rtol=1e-4, atol=1e-5)


def test_jacobian_and_hessian_in_evaluation():
    sn, x = learned(SwitchNorm1d(3)).double().eval(), torch.randn(2, 3, 2, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(sn, x)
    torch.testing.assert_close(torch.func.jacrev(sn)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(sn)(x), expected)

    def scalar(x: Tensor) -> Tensor:
        return sn(x).pow(3).sum()

    expected = torch.autograd.functional.hessian(scalar, x)
    torch.testing.assert_close(torch.func.hessian(scalar)(x), expected)


def test_replace_all_batch_norm_modules_leaves_sn():
    """torch's function knows _BatchNorm; SN is switched by its argument."""
    model = nn.Sequential(nn.BatchNorm2d(3), SwitchNorm2d(3))
    torch.func.replace_all_batch_norm_modules_(model)
    assert model[0].running_mean is None and model[1].running_mean is not None
    sn = SwitchNorm2d(3, track_running_stats=False)
    x = torch.randn(5, 2, 3, 4, 4)
    torch.testing.assert_close(torch.func.vmap(sn)(x), torch.stack([sn(each) for each in x]))


# --- the page -------------------------------------------------------------------------------------


def test_the_page_names_tests_that_are_there():
    root = Path(__file__).parents[1]
    page = (root / 'docs/records/peer_tests.md').read_text()
    rows = [
        line for line in page.splitlines() if re.search(r'\| (passes|differs|not applicable)', line)
    ]
    assert len(rows) > 40
    for row in rows:
        named = re.findall(r'`([\w/]+)::(test_\w+)`', row)
        assert named or '| not applicable' in row, row
        for file, name in named:
            assert f'def {name}(' in (root / f'tests/{file}.py').read_text(), (file, name)
