"""Parameter groups in which the importance of SN learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sn_mm
from sn_mm.errors import InputError
from sn_mm.optim import importance_lr, travel_of


def model() -> nn.Sequential:
    norm = sn_mm.SwitchNorm2d(4)
    frozen = sn_mm.SwitchNorm2d(4).requires_grad_(False)
    return nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Sequential(norm), frozen, nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    ('lr', 'steps', 'travel', 'expected'),
    [
        (1e-3, 400, 12, 0.03),
        (1e-3, 12_000, 12, 1e-3),
        (1e-3, 120_000, 12, 1e-3),  # never below the others
        (5e-3, 800, 400, 0.5),
        (1e-3, 2, 12, 12 / 50),  # a trial
    ],
)
def test_the_learning_rate_of_the_importance(lr, steps, travel, expected):
    assert importance_lr(lr, steps, travel) == pytest.approx(expected)


@pytest.mark.parametrize(
    ('optimizer', 'expected'),
    [
        (lambda p: torch.optim.AdamW(p), 12),
        (lambda p: torch.optim.NAdam(p), 12),
        (lambda p: torch.optim.SGD(p, lr=0.1), 4000),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 400),
        (lambda p: torch.optim.RMSprop(p, momentum=0.9), None),
    ],
    ids=['AdamW', 'NAdam', 'SGD', 'momentum', 'RMSprop'],
)
def test_the_travel_of_optimizers(optimizer, expected):
    assert travel_of(optimizer(model().parameters())) == pytest.approx(expected)


def test_groups_hold_each_parameter_that_learns_once():
    net = model()
    others, norms, importance = sn_mm.parameter_groups(net, 1e-3, 0.01, steps=400)
    assert [*map(id, others['params'])] == [*map(id, (*net[0].parameters(), *net[4].parameters()))]
    assert [*map(id, norms['params'])] == [id(net[1].weight), id(net[1].bias)]
    assert [*map(id, importance['params'])] == [id(net[1].mean_weight), id(net[1].var_weight)]
    assert [g['lr'] for g in (others, norms, importance)] == pytest.approx([1e-3, 1e-3, 0.03])
    assert [g['weight_decay'] for g in (others, norms, importance)] == [0.01, 0, 0]


@pytest.mark.parametrize('momentum', [None, 0.9])
def test_the_importance_learns_in_a_short_training(momentum):
    """A layer whose input needs the statistics of each image, in 100 steps."""
    moved = {}
    for grouped in (False, True):
        torch.manual_seed(0)
        norm = sn_mm.SwitchNorm2d(4)
        lr = 1e-3 if momentum is None else 0.005
        groups = sn_mm.parameter_groups(norm, lr, steps=100, momentum=momentum)
        optimizer = (
            torch.optim.Adam(groups if grouped else norm.parameters(), lr)
            if momentum is None
            else torch.optim.SGD(groups if grouped else norm.parameters(), lr, momentum)
        )
        for _ in range(100):
            image = torch.randn(4, 4, 6, 6)
            light = torch.rand(4, 4, 1, 1) * 3
            loss = (norm(image * light + light) - image).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved[grouped] = norm.importance()['mean']['in'] - 1 / 3
    assert moved[True] > 0.2 and moved[True] > 5 * abs(moved[False])


def test_a_model_without_sn_and_wrong_numbers_are_refused():
    with pytest.raises(InputError, match='no SN layer'):
        sn_mm.parameter_groups(nn.Linear(2, 2), 0.1, steps=10)
    with pytest.raises(InputError, match='steps must be an int >= 1, got 0'):
        sn_mm.parameter_groups(model(), 0.1, steps=0)
