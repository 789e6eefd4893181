"""check_optimizer: what others' ways to sort parameters do to SN, said before training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import HOOKS
from torch import nn
from toy_training import build_runner

from sn_mm import SwitchNorm2d, check_optimizer, convert_switch_norm
from sn_mm.errors import InputError


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), SwitchNorm2d(4), nn.Conv2d(4, 4, 1))


def by_class(network: nn.Module) -> list[dict]:
    """As MMYOLO's constructor: by class and by attribute."""
    groups: tuple[list, list, list] = [], [], []
    for module in network.modules():
        if isinstance(getattr(module, 'bias', None), nn.Parameter):
            groups[0].append(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            groups[1].append(module.weight)
        elif isinstance(getattr(module, 'weight', None), nn.Parameter):
            groups[2].append(module.weight)
    decays = 0.0, 0.0, 5e-4
    return [dict(params=g, weight_decay=d) for g, d in zip(groups, decays) if g]


def lines(network: nn.Module, *optimizers: torch.optim.Optimizer) -> list[str]:
    found: list[str] = []
    check_optimizer(network, *optimizers, report=found.append)
    return found


def test_importance_that_is_left_out_and_norms_that_are_decayed_are_named():
    network = model()
    assert lines(network, torch.optim.SGD(by_class(network), lr=0.1)) == [
        'no optimizer has these parameters of SN, so they do not learn: '
        '1.mean_weight, 1.var_weight',
        'SN has weight decay, and other parameters have none: 1.weight',
    ]


def test_that_of_ultralytics_takes_sn_for_no_norm():
    trainer = pytest.importorskip('ultralytics.engine.trainer').BaseTrainer
    network = model()
    optimizer = trainer.build_optimizer(None, network, 'SGD', decay=5e-4)
    assert [line.split(':')[0] for line in lines(network, optimizer)] == [
        "weight decay pulls SN's scopes to equal importance",
        'SN has weight decay, and other parameters have none',
    ]


def test_an_optimizer_built_before_the_conversion_is_found():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.warns(UserWarning, match='do not learn: .*1.mean_weight, 1.var_weight'):
        check_optimizer(convert_switch_norm(network), optimizer)


def test_decay_of_all_is_named_for_the_importance_alone():
    network = model()
    (line,) = lines(network, torch.optim.AdamW(network.parameters()))
    assert line == (
        "weight decay pulls SN's scopes to equal importance: 1.mean_weight, 1.var_weight"
    )


def test_nothing_is_said_of_frozen_layers_and_of_right_groups():
    network = model()
    assert lines(network, torch.optim.SGD(network.parameters(), lr=0.1)) == []
    halves = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (network[:2], network[2:])]
    assert lines(network, *halves) == []
    network[1].requires_grad_(False)
    assert lines(network, torch.optim.SGD(network[0].parameters(), lr=0.1)) == []


def test_arguments_are_checked():
    with pytest.raises(InputError, match='needs one optimizer or more'):
        check_optimizer(model())
    with pytest.raises(InputError, match='optimizer must be a torch.optim.Optimizer'):
        check_optimizer(model(), 'SGD')


def test_the_hook_warns_in_the_log_of_a_training(tmp_path: Path):
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.1)
    hook = HOOKS.build(dict(type='OptimizerCheckHook'))
    optim_wrapper = dict(optimizer=optimizer)
    build_runner(tmp_path, hook, optim_wrapper=optim_wrapper, log_level='WARNING').train()
    (log,) = tmp_path.glob('*/*.log')
    line = 'WARNING.*equal importance: norm.mean_weight, norm.var_weight'
    assert re.search(line, log.read_text())
