"""SwitchNormAct: SN, a drop layer and an activation in one module."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm
from sn_mm.norm_act import SwitchNormAct


def pair() -> tuple[SwitchNorm, SwitchNormAct]:
    """A plain layer and one with drop and act, with the same weights."""
    plain = SwitchNorm(4)
    for parameter in plain.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    both = SwitchNormAct(4, drop=nn.Dropout(0.5), act=nn.ReLU(inplace=True))
    both.load_state_dict(plain.state_dict())
    return plain, both


@pytest.mark.parametrize('training', (True, False))
@pytest.mark.parametrize('shape', ((2, 4), (2, 4, 5), (2, 4, 5, 6)))
def test_equals_the_three_one_after_another(training, shape):
    plain, both = (layer.train(training) for layer in pair())
    x = torch.randn(shape, requires_grad=True)
    torch.manual_seed(0)
    want = both.act(both.drop(plain(x)))
    torch.manual_seed(0)
    got = both(x)
    torch.testing.assert_close(got, want)
    dy = torch.randn_like(got)
    torch.testing.assert_close(torch.autograd.grad(got, x, dy), torch.autograd.grad(want, x, dy))
    assert training == bool(plain.num_batches_tracked)


def test_neither_drops_nor_activates_by_default():
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(SwitchNormAct(4)(x), SwitchNorm(4)(x))


def test_copies_and_pickles_keep_drop_and_act():
    _, both = pair()
    x = torch.randn(2, 4, 5, 6)
    for twin in (copy.deepcopy(both), copy.copy(both), pickle.loads(pickle.dumps(both))):
        assert (type(twin.drop), type(twin.act)) == (nn.Dropout, nn.ReLU)
        torch.testing.assert_close(twin.eval()(x), both.eval()(x))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize(
    'record',
    (
        lambda model, x: torch.jit.script(model),
        lambda model, x: torch.jit.trace(model, x),
        pytest.param(
            lambda model, x: torch.export.export(model, (x,)).module(),
            marks=pytest.mark.skipif(
                not hasattr(torch.library, 'register_fake'),
                reason='torch < 2.4 does not export the layer',
            ),
        ),
        lambda model, x: torch.fx.symbolic_trace(model),
    ),
    ids=('script', 'trace', 'export', 'fx'),
)
def test_a_recorded_model_drops_and_activates_once(record):
    act = nn.Softplus()  # applied twice, it gives another output
    model = nn.Sequential(nn.Conv2d(3, 4, 3), SwitchNormAct(4, act=act)).eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(record(model, x)(x), model(x))


def test_fx_takes_the_layer_as_one_node():
    graph = torch.fx.symbolic_trace(nn.Sequential(pair()[1])).graph
    assert [node.op for node in graph.nodes] == ['placeholder', 'call_module', 'output']
