"""Sparse SN: the map from logits to the importance, the layers, their radius, and what is fixed."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import reference
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sn_mm
from sn_mm import (
    SparseSwitchNorm1d,
    SparseSwitchNorm2d,
    SwitchNorm2d,
    revert_switch_norm,
    set_radius,
)
from sn_mm.analysis.importance import from_model, from_state_dict
from sn_mm.errors import InputError
from sn_mm.sparsestmax import sparsemax, sparsest_logits, sparsestmax

LOGITS = st.lists(st.floats(-2, 2), min_size=1, max_size=3)


@given(LOGITS, st.floats(0, 1))
@settings(deadline=None, max_examples=300)
def test_sparsestmax_is_that_of_the_paper(logits, radius):
    got = sparsestmax(torch.tensor(logits).double(), torch.tensor(radius).double())
    want = torch.tensor(reference.sparsestmax(logits, radius)).double()
    ordered = sorted(logits)
    if all(b - a > 1e-5 for a, b in zip(ordered, ordered[1:])):  # else the direction is rounding
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert got.min() >= 0 and math.isclose(got.sum(), 1, abs_tol=1e-6)


@pytest.mark.parametrize('logits', [[0.3, 0.5, 0.1], [1, 1, 1.2], [0.2, 0.9], [2.0, -1, 0]])
def test_importance_leaves_the_centre_as_the_radius_grows(logits):
    logits = torch.tensor(logits).double()
    centre = torch.full_like(logits, 1 / len(logits))
    distances = []
    for radius in torch.linspace(0, 1, 41).double():
        importance = sparsestmax(logits, radius)
        distances.append((importance - centre).norm())
        reached = min(radius, math.sqrt(1 - 1 / len(logits)))
        assert distances[-1] >= reached - 1e-9
        assert importance.argmax() == logits.argmax()
    assert distances == sorted(distances)
    assert sorted(importance.tolist()) == [0.0] * (len(logits) - 1) + [1.0]


def test_gradients_of_the_sparsestmax():
    inside, on_circle, on_face = [0.5, 0.3, 0.1], [0.4, 0.3, 0.35], [0.6, 0.5, -0.9]
    for logits, radius in ((inside, 0.1), (on_circle, 0.2), (on_face, 0.55), ([0.2, 0.4], 0.3)):
        logits = torch.tensor(logits).double().requires_grad_()
        radius = torch.tensor(radius).double()
        assert torch.autograd.gradcheck(lambda z, r=radius: sparsestmax(z, r), logits)
        assert torch.autograd.gradgradcheck(lambda z, r=radius: sparsestmax(z, r), logits)


@pytest.mark.parametrize('radius', [0.0, 0.3, 0.6, 0.8, 1.0])
@pytest.mark.parametrize('logits', [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1], [1], [5, -5, 0]])
def test_no_gradient_is_nan_at_the_kinks(logits, radius):
    logits = torch.tensor(logits).float().requires_grad_()
    importance = sparsestmax(logits, torch.tensor(radius))
    gradient = torch.autograd.grad(importance @ torch.arange(1.0, len(logits) + 1), logits)[0]
    assert torch.isfinite(gradient).all() and abs(gradient.sum()) < 1e-5
    assert math.isclose(importance.sum(), 1, abs_tol=1e-6)


def test_equal_logits_keep_the_gradient_with_which_they_part():
    logits = torch.ones(3, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 6.0])
    for radius in (0.0, 0.5):
        importance = sparsestmax(logits, torch.tensor(radius))
        gradient = torch.autograd.grad(importance @ weights, logits)[0]
        torch.testing.assert_close(gradient, weights - weights.mean())


@pytest.mark.parametrize('one_position', [False, True])
@pytest.mark.parametrize('radius', [0.0, 0.2, 0.45, 0.7, 0.9])
def test_the_softmax_of_the_sparsest_logits_is_the_sparsestmax(radius, one_position):
    logits = torch.tensor([[0.3, 0.9, 0.2], [0.1, 0.25, 0.2]], dtype=torch.float64)
    logits.requires_grad_()
    radius, free = torch.tensor(radius), torch.zeros(2, 3)
    got = sparsest_logits(logits, radius, free, one_position).softmax(1)
    left = logits[:, 1:] if one_position else logits
    want = sparsestmax(left, radius.double())
    torch.testing.assert_close(got[:, -left.shape[1] :], want)
    assert not one_position or not got[:, 0].any()
    weights = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 2.0]]).double()
    gradient = torch.autograd.grad((got * weights).sum(), logits)[0]
    wanted = torch.autograd.grad((want * weights[:, -left.shape[1] :]).sum(), logits)[0]
    torch.testing.assert_close(gradient, wanted)


def layer_with(mean, var, **kwargs) -> SparseSwitchNorm2d:
    layer = SparseSwitchNorm2d(4, **kwargs).double()
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor(mean))
        layer.var_weight.copy_(torch.tensor(var))
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    return layer


@pytest.mark.parametrize('radius', [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize('shape', [(3, 4, 5, 6), (3, 4, 1, 1)])
def test_layer_is_the_reference_with_this_importance(radius, shape):
    mean, var = [0.4, 0.9, 0.2], [0.3, 0.2, 0.35]
    layer = layer_with(mean, var)
    set_radius(layer, radius)
    x = (torch.randn(shape).double() * 2 + 1).requires_grad_()
    used = slice(1, None) if shape[2:] == (1, 1) else slice(None)
    logs = []
    for logits in (mean, var):
        importance = torch.tensor(reference.sparsestmax(logits[used], radius)).double()
        log = importance.log()
        logs.append(torch.cat([torch.zeros(3 - len(log)).double(), log]))
    want = reference.switch_norm(
        [x], *logs, layer.weight, layer.bias, layer.running_mean, layer.running_var
    )
    y = layer(x)
    torch.testing.assert_close(y, want.outputs[0])
    torch.testing.assert_close(layer.running_var, want.running_var)
    dy = torch.randn_like(y)
    gradients = (torch.autograd.grad(out, x, dy)[0] for out in (y, want.outputs[0]))
    torch.testing.assert_close(*gradients)


def test_layer_passes_gradcheck_at_a_circle_and_at_a_face():
    for radius, mean in ((0.2, [0.4, 0.3, 0.35]), (0.55, [0.6, 0.5, -0.9])):
        layer = layer_with(mean, [0.5, 0.45, 0.3], sync=False)
        set_radius(layer, radius)
        x = torch.randn(2, 4, 3, 2).double().requires_grad_()
        names = ['weight', 'bias', 'mean_weight', 'var_weight']

        def run(x, *parameters, layer=layer, names=names):
            return torch.func.functional_call(layer, dict(zip(names, parameters)), x)

        assert torch.autograd.gradcheck(run, (x, *(getattr(layer, name) for name in names)))


@pytest.mark.parametrize(('scope', 'norm'), [
    ('bn', lambda: nn.BatchNorm2d(4)),
    ('in', lambda: nn.InstanceNorm2d(4, affine=True)),
    ('ln', lambda: nn.GroupNorm(1, 4)),
])  # fmt: skip
def test_one_hot_is_that_norm(scope, norm):
    layer = SparseSwitchNorm2d(4, init_importance=scope)
    assert layer.importance()['var'][scope] == 1
    theirs = norm()
    for _ in range(2):
        x = torch.randn(3, 4, 5, 5) * 3 + 2
        torch.testing.assert_close(layer(x), theirs(x))
    torch.testing.assert_close(layer.eval()(x), theirs.eval()(x))


def test_what_is_one_hot_is_fixed_for_good():
    layer = layer_with([0.3, 0.5, 0.2], [2.0, 0.1, 0.4])
    x = torch.randn(3, 4, 5, 5).double()
    set_radius(layer, 0.1)
    assert layer.var_fixed.tolist() == [1, 0, 0] and not layer.mean_fixed.any()  # 1 apart
    layer(x).square().sum().backward()
    assert not layer.var_weight.grad.any() and layer.mean_weight.grad.any()
    with torch.no_grad():  # as weight decay and momentum move it
        layer.var_weight.copy_(torch.tensor([0.0, 3.0, 0.0]))
    set_radius(layer, 0.2)
    assert layer.importance()['var'] == {'in': 1, 'ln': 0, 'bn': 0}
    other = SparseSwitchNorm2d(4).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.var_fixed, layer.var_fixed) and other.radius == layer.radius
    torch.testing.assert_close(other(x), copy.deepcopy(layer)(x))
    other.reset_parameters()
    assert not other.var_fixed.any() and other.importance()['var']['in'] == pytest.approx(1 / 3)


@pytest.mark.parametrize('average', [None, get_ema_multi_avg_fn(0.999)])
def test_averages_of_the_weights_keep_what_is_fixed(average):
    layer = layer_with([0.3, 0.4, 0.5], [0.5, 0.4, 0.3])
    averaged = AveragedModel(layer, multi_avg_fn=average, use_buffers=True)
    for radius in (0, 0.1, 0.2, 1):
        set_radius(layer, radius)
        averaged.update_parameters(layer)
        if radius == 0.2:
            assert averaged.module.importance()['mean']['bn'] < 1
    assert averaged.module.radius < 1
    assert averaged.module.importance() == layer.importance()


def test_every_layer_is_one_norm_at_the_end():
    torch.manual_seed(0)
    model = nn.Sequential(*(SparseSwitchNorm2d(2) for _ in range(20)), SparseSwitchNorm1d(2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1, 0.1)
    before = [layer.importance() for layer in model]
    set_radius(model, 0.82)
    for layer, old in zip(model, before):
        for statistic, shares in layer.importance().items():
            assert sorted(shares.values()) == [0, 0, 1]
            assert max(shares, key=shares.get) == max(old[statistic], key=old[statistic].get)
        assert layer.mean_fixed.sum() == layer.var_fixed.sum() == 1


def test_two_scopes_and_one():
    for normalizers in (('in', 'ln'), ('ln', 'bn'), ('bn',)):
        layer = SparseSwitchNorm2d(4, normalizers=normalizers)
        x = torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(layer(x), SwitchNorm2d(4, normalizers=normalizers)(x))
        set_radius(layer, 1)
        assert max(layer.importance()['mean'].values()) == 1


def test_weights_of_switch_norm_keep_their_importance():
    theirs = SwitchNorm2d(4)
    with torch.no_grad():
        theirs.mean_weight.copy_(torch.tensor([0.3, 1.2, -0.4]))
    layer = SparseSwitchNorm2d(4)
    missing, unexpected = layer.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing) == {'radius', 'mean_fixed', 'var_fixed'} and not unexpected
    for scope, share in theirs.importance()['mean'].items():
        assert layer.importance()['mean'][scope] == pytest.approx(share)
    with pytest.raises(RuntimeError, match='Sparse SN'):
        theirs.load_state_dict(layer.state_dict(), strict=False)


def test_weights_of_switch_norm_by_distributed_checkpoint():
    theirs = pytest.importorskip('torch.distributed.checkpoint.state_dict')
    layer, dense = SparseSwitchNorm2d(4), SwitchNorm2d(4, init_importance=dict(bn=0.6))
    options = theirs.StateDictOptions(full_state_dict=True, strict=False)
    theirs.set_model_state_dict(layer, dense.state_dict(), options=options)
    assert layer.importance()['mean']['bn'] == pytest.approx(0.6)


def test_assigned_weights_of_switch_norm_stay_as_they_are_in_their_file():
    weights = SwitchNorm2d(4, init_importance='ln').state_dict()
    before = copy.deepcopy(weights)
    for _ in range(2):
        layer = SparseSwitchNorm2d(4)
        layer.load_state_dict(weights, strict=False, assign=True)
        assert layer.importance()['mean']['ln'] == pytest.approx(1)
        assert layer.mean_weight.requires_grad
    torch.testing.assert_close(weights, before)


def test_weights_of_batch_norm_start_near_it():
    layer = SparseSwitchNorm2d(4)
    layer.load_state_dict(nn.BatchNorm2d(4).state_dict(), strict=False)
    assert layer.importance()['mean']['bn'] == pytest.approx(0.9)
    frozen = SparseSwitchNorm2d(4).requires_grad_(False)
    frozen.load_state_dict(nn.BatchNorm2d(4).state_dict(), strict=False)
    assert frozen.importance()['mean']['bn'] == 1


def test_a_training_without_a_radius_says_so():
    layer = SparseSwitchNorm2d(4)
    layer(torch.randn(2, 4, 3, 3))
    for _ in range(2):  # a second training, too
        with pytest.warns(UserWarning, match='SparseSwitchHook'):
            layer.eval()
        layer.train()(torch.randn(2, 4, 3, 3))


@pytest.mark.filterwarnings('error')
def test_no_word_where_the_radius_grows_or_no_batch_was_seen():
    layer = SparseSwitchNorm2d(4)
    layer.eval().train()
    set_radius(layer, 0.5)
    layer(torch.randn(2, 4, 3, 3))
    layer.eval()
    norm = SwitchNorm2d(4)
    norm(torch.randn(2, 4, 3, 3))
    loaded = SparseSwitchNorm2d(4)
    loaded.load_state_dict(norm.state_dict(), strict=False)
    loaded.eval()
    batch_norm = nn.BatchNorm2d(4)
    batch_norm(torch.randn(2, 4, 3, 3))
    sn_mm.convert_switch_norm(batch_norm, sparse=True).eval()


def test_training_finds_the_scope_that_helps():
    """Images whose brightness means nothing: the batch's mean is the wrong one to subtract."""
    torch.manual_seed(0)
    model = nn.Sequential(SparseSwitchNorm2d(3, sync=False), nn.Flatten(), nn.Linear(48, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(100):
        set_radius(model, step / 100)
        pattern = torch.randn(8, 3, 4, 4)
        target = pattern[:, 0, 0, 0:1]
        loss = (model(pattern + 5 * torch.randn(8, 3, 1, 1)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model[0].importance()['mean'] == {'in': 1, 'ln': 0, 'bn': 0}


def test_compiled_layer_does_not_compile_anew_as_the_radius_grows(fresh_compiler):
    layer = SparseSwitchNorm2d(4)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    x = torch.randn(2, 4, 5, 5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for radius in (0.0, 0.3, 0.9):
            set_radius(layer, radius)
            torch.testing.assert_close(compiled(x), copy.deepcopy(layer)(x))


@pytest.mark.parametrize('progress', [-0.1, 1.1, '0.5', None])
def test_progress_outside_of_the_training(progress):
    with pytest.raises(InputError, match='progress must be a number from 0 to 1'):
        set_radius(SparseSwitchNorm2d(4), progress)


def test_a_model_without_sparse_layers_has_no_radius():
    set_radius(nn.Sequential(SwitchNorm2d(4)), 0.5)


def test_sparsemax_of_batches():
    logits = torch.tensor(list(product([0.0, 0.4, 2.0], repeat=3)))
    for row, got in zip(logits, sparsemax(logits)):
        want = torch.tensor(reference.sparsestmax(row.tolist(), 0.0))
        torch.testing.assert_close(got, want)


def test_sparsemax_of_large_logits():
    logits = torch.tensor([1e9, 1e9 + 64, -1e30])
    assert sparsemax(logits).tolist() == [0, 1, 0]


def test_public_names():
    assert sn_mm.SparseSwitchNorm(4)(torch.randn(2, 4, 3)).shape == (2, 4, 3)
    assert SparseSwitchNorm1d(4)(torch.randn(2, 4)).shape == (2, 4)
    assert sn_mm.SparseSwitchNorm3d(4)(torch.randn(2, 4, 2, 2, 2)).shape == (2, 4, 2, 2, 2)


@on_ranks(2, cases=[{'radius': r} for r in (0.2, 1.0)])
def test_ranks_equal_one_process_with_the_union(rank, size, radius):
    layer = layer_with([0.4, 0.3, 0.5], [0.5, 0.45, 0.3])
    set_radius(layer, radius)
    union = copy.deepcopy(layer)
    union.sync = False
    x, dy = torch.randn(2, 2, 4, 3, 3).double(), torch.randn(2, 2, 4, 3, 3).double()
    y, whole = layer(x[rank]), union(x.flatten(0, 1))
    torch.testing.assert_close(y, whole[2 * rank : 2 * rank + 2])
    torch.testing.assert_close(layer.running_var, union.running_var)
    y.backward(dy[rank])
    whole.backward(dy.flatten(0, 1))
    for mine, all_of_it in zip(layer.parameters(), union.parameters()):
        dist.all_reduce(mine.grad)
        torch.testing.assert_close(mine.grad, all_of_it.grad)


def test_importance_is_read_from_models_and_state_dicts():
    model = nn.Sequential(layer_with([0.4, 0.9, 0.2], [2.0, 0.1, 0.4]))
    set_radius(model, 0.6)
    want = {'0': model[0].importance()}
    assert want['0']['mean']['ln'] > 0.6
    for got in (from_model(model), from_state_dict(model.state_dict())):
        for statistic, shares in want['0'].items():
            assert got['0'][statistic] == pytest.approx(shares)


class Images(nn.Module):
    def __init__(self, scope: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = SparseSwitchNorm2d(4, init_importance=scope)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = SparseSwitchNorm1d(4, init_importance='ln')

    def forward(self, x):
        return self.last(self.pool(self.norm(self.conv(x)).relu()).flatten(1))


@pytest.mark.parametrize(('scope', 'kind'), [
    ('bn', nn.BatchNorm2d), ('in', nn.InstanceNorm2d), ('ln', nn.GroupNorm),
])  # fmt: skip
def test_reverted_layers_are_torchs_norms(scope, kind):
    model = Images(scope)
    with torch.no_grad():
        for p in (model.norm.weight, model.norm.bias):
            p.uniform_(0.5, 2)
    for _ in range(3):
        model(torch.randn(4, 3, 8, 8) * 2 + 1)
    set_radius(model, 1)
    model.eval()
    x = torch.randn(4, 3, 8, 8)
    want, weight, lines = model(x), model.norm.weight, []
    revert_switch_norm(model, report=lines.append)
    assert type(model.norm) is kind and type(model.last) is nn.GroupNorm
    assert model.norm.weight is weight and lines[-1].endswith('2 of 2')
    torch.testing.assert_close(model(x), want)
    if scope == 'bn':
        fused = fuse_conv_bn_eval(model.conv, model.norm)
        torch.testing.assert_close(fused(x), model.norm(model.conv(x)))


def different_scopes():
    return layer_with([1.0, 0, 0], [0, 0, 1.0])


@pytest.mark.parametrize(('layer', 'reason'), [
    (different_scopes, "its means are of 'in' and its variances of 'bn'"),
    (lambda: layer_with([0.5, 0.4, 0.3], [0, 0, 1.0]), 'its importance is not one-hot'),
    (lambda: layer_with([0, 1.0, 0], [0, 1.0, 0], correction=1), 'correction=1'),
    (lambda: SparseSwitchNorm1d(4, init_importance='in'), 'any number of axes'),
])  # fmt: skip
def test_layers_that_are_no_norm_of_torch_stay_and_say_why(layer, reason):
    model, lines = nn.Sequential(layer()), []
    revert_switch_norm(model, report=lines.append)
    assert isinstance(model[0], sn_mm.SwitchNorm) and reason in lines[0]


@pytest.mark.parametrize(('kind', 'shape'), [
    (SparseSwitchNorm2d, (2, 4, 1, 1)), (SparseSwitchNorm1d, (2, 4)),
])  # fmt: skip
def test_instance_norm_cannot_be_where_one_position_is_met(kind, shape):
    model, lines = nn.Sequential(kind(4, init_importance='in')), []
    revert_switch_norm(model, inputs=torch.randn(shape), report=lines.append)
    assert type(model[0]) is kind and 'one position per channel' in lines[0]


def test_layers_of_switch_norm_need_a_threshold():
    with pytest.raises(InputError, match='layers of SN need a threshold'):
        revert_switch_norm(SwitchNorm2d(4))


def test_models_are_converted_to_sparse_layers():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    sn_mm.convert_switch_norm(model, sparse=True, normalizers=('ln', 'bn'))
    kinds = SparseSwitchNorm1d, SparseSwitchNorm2d, sn_mm.SparseSwitchNorm
    assert [type(layer) for layer in model] == list(kinds)
    assert model[0].normalizers == ('ln', 'bn')
