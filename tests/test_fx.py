"""SN is one node for torch.fx, as torch's own norms are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm, SwitchNorm2d
from sn_mm.errors import InputError


def network() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), SwitchNorm2d(4), nn.ReLU())
    return nn.ModuleDict({'body': body}).body


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_a_layer_is_a_module_in_the_graph(training):
    model = network().train(training)
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes if n.target == '1'] == ['call_module']
    assert isinstance(graph.get_submodule('1'), SwitchNorm)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(graph(x), model(x))
    assert model[1].num_batches_tracked == (2 if training else 0)


def test_a_layer_that_is_the_whole_model_is_refused_in_one_line():
    with pytest.raises(InputError, match=r'nn\.Sequential\(layer\)'):
        torch.fx.symbolic_trace(SwitchNorm2d(3))


@pytest.mark.filterwarnings('ignore')
def test_quantization_leaves_the_layer_in_float():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model = network().eval()
    x = torch.randn(2, 3, 6, 6)
    prepared = prepare_fx(model, get_default_qconfig_mapping('fbgemm'), (x,))
    prepared(x)
    converted = convert_fx(prepared)
    layer, met = converted.get_submodule('1'), []
    assert isinstance(layer, SwitchNorm)
    layer.register_forward_hook(lambda module, inputs, output: met.append((*inputs, output)))
    converted(x)
    ((given, output),) = met
    assert given.dtype == torch.float32 and given.shape == (2, 4, 4, 4)
    assert torch.equal(output, model[1](given))
