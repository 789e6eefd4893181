"""Importance is read whole, in network order, and gathered by the network's components."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm1d, SwitchNorm2d
from sn_mm.analysis import importance
from sn_mm.errors import InputError


def network() -> nn.Sequential:
    """SN layers of all kinds with random weights, among other layers."""
    norms = [
        SwitchNorm2d(4),
        SwitchNorm2d(4, normalizers=('in', 'ln')),
        SwitchNorm1d(3, normalizers=('bn',)),
        SwitchNorm2d(2, normalizers=('ln', 'bn')),
    ]
    for norm in norms:
        nn.init.normal_(norm.mean_weight)
        nn.init.normal_(norm.var_weight)
    return nn.Sequential(norms[0], nn.BatchNorm2d(4), nn.Sequential(*norms[1:3]), norms[3])


def test_model_gives_each_layers_own_importance_in_network_order() -> None:
    model = network()
    read = importance.from_model(model)
    assert list(read) == ['0', '2.0', '2.1', '3']
    for name, layer in read.items():
        expected = model.get_submodule(name).importance()
        assert list(layer) == ['mean', 'var']
        for statistic in layer:
            assert layer[statistic] == pytest.approx(expected[statistic], abs=1e-7)


@pytest.mark.parametrize('wrap', [nn.Identity, nn.DataParallel])
def test_state_dict_gives_the_same_as_the_model(wrap: type) -> None:
    model = nn.Sequential(*list(network())[:2], SwitchNorm2d(2))
    holder = nn.ModuleDict({'module': model}) if wrap is nn.DataParallel else model
    assert importance.from_state_dict(holder.state_dict()) == importance.from_model(model)


def test_mixes_are_counted_in_a_line() -> None:
    start = {'bn': 0.9}
    norms = [SwitchNorm2d(4), *(SwitchNorm2d(4, init_importance=start) for _ in range(2))]
    line = '2 layers: in 0.05, ln 0.05, bn 0.90; 1 layers: in 0.33, ln 0.33, bn 0.33'
    assert importance.describe(importance.from_model(nn.Sequential(*norms))) == line
    learned = importance.describe(importance.from_model(network()))
    assert learned.startswith('1 layers: mean in 0.') and learned.endswith('; 1 layers: others')


def test_a_layer_that_is_the_model_has_no_name() -> None:
    norm = SwitchNorm2d(4)
    assert importance.from_state_dict(norm.state_dict()) == {'': norm.importance()}


def test_layers_on_several_devices_are_read() -> None:
    model = nn.Sequential(SwitchNorm2d(4), SwitchNorm2d(4, device='meta'))
    with pytest.raises(NotImplementedError, match='meta'):  # a device without data: it got so far
        importance.from_model(model)


def test_two_weights_without_running_statistics_are_in_and_ln() -> None:
    norm = SwitchNorm2d(4, normalizers=('in', 'ln'))
    (layer,) = importance.from_state_dict(nn.Sequential(norm).state_dict()).values()
    assert layer == norm.importance()


def test_two_weights_with_running_statistics_need_names() -> None:
    norm = SwitchNorm2d(4, normalizers=('ln', 'bn'))
    weights = nn.Sequential(norm).state_dict()
    with pytest.raises(InputError, match='0 mixes 2 of the scopes'):
        importance.from_state_dict(weights)
    with pytest.raises(InputError, match='got .*bn'):
        importance.from_state_dict(weights, ('bn',))
    (layer,) = importance.from_state_dict(weights, ('ln', 'bn')).values()
    assert layer == norm.importance()


def test_nothing_without_sn() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2, affine=True))
    assert importance.from_model(model) == {}
    assert importance.from_state_dict(model.state_dict()) == {}


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (
            ['backbone.bn1', 'backbone.layer1.0.bn1', 'backbone.layer1.0.downsample.1'],
            {'stem': ['bn1'], 'layer1': ['0.bn1', '0.downsample.1']},
        ),
        (
            ['backbone.stem.1', 'backbone.layer4.2.bn3', 'decode_head.c1_bottleneck.bn'],
            {'stem': ['1'], 'layer4': ['2.bn3'], 'decode_head': ['c1_bottleneck.bn']},
        ),
        (
            ['neck.lateral_convs.0.bn', 'roi_head.bbox_head.0.shared_convs.0.bn'],
            {'neck': ['lateral_convs.0.bn'], 'bbox_head.0': ['shared_convs.0.bn']},
        ),
        (
            ['bn1', 'bn2', 'stage2.0.bn', 'bn3'],
            {'stem': ['bn1', 'bn2'], 'stage2': ['0.bn'], 'bn3': ['bn3']},
        ),
        (['backbone.stages.0.blocks.1.bn'], {'stages.0': ['blocks.1.bn']}),
        (['module.backbone.layer1.0.bn1'], {'layer1': ['0.bn1']}),
    ],
)
def test_components_are_those_of_the_architecture(names: list, expected: dict) -> None:
    grouped = importance.components(names)
    assert {component: list(group.values()) for component, group in grouped.items()} == expected
    assert [name for group in grouped.values() for name in group] == names


def test_components_average_their_layers() -> None:
    layers = {
        'layer1.0.bn1': {'mean': {'in': 0.2, 'ln': 0.2, 'bn': 0.6}, 'var': {'in': 0.0, 'bn': 1.0}},
        'layer1.0.bn2': {'mean': {'ln': 0.5, 'bn': 0.5}, 'var': {'in': 0.5, 'bn': 0.5}},
        'neck.bn': {'mean': {'bn': 1.0}, 'var': {'bn': 1.0}},
    }
    averages = importance.by_component(layers)
    assert averages['layer1']['mean'] == pytest.approx({'in': 0.1, 'ln': 0.35, 'bn': 0.55})
    assert averages['layer1']['var'] == pytest.approx({'in': 0.25, 'bn': 0.75})
    assert averages['neck'] == layers['neck.bn']


@pytest.mark.parametrize('kind', ['layer', 'component'])
def test_log_gives_back_what_was_logged(kind: str) -> None:
    first = {'backbone.layer1.0.bn1': SwitchNorm2d(2).importance()}
    second = {'backbone.layer1.0.bn1': network()[0].importance()}
    lines = [{'loss': 1.0, 'step': 1}]
    for step, layers in ((0, first), (100, second)):
        logged = importance.by_component(layers) if kind == 'component' else layers
        lines.append({**importance.to_scalars(logged, kind), 'step': step})
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    killed = text + '{"sn_layer/mean/backb'
    assert importance.from_log(killed) == {
        0: importance.by_component(first),
        100: importance.by_component(second),
    }
    with pytest.raises(InputError, match='line'):
        importance.from_log(killed + '\n')


def test_reading_a_model_copies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    copy_to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda t: copies.append(1) or copy_to_host(t))
    importance.from_model(nn.Sequential(*(SwitchNorm2d(2) for _ in range(150))))
    assert len(copies) == 1
