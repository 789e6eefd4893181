"""Module surgery, the one function behind `convert_switch_norm` and `revert_switch_norm`."""

from __future__ import annotations

import torch
from torch import nn

from sn_mm.model.replace import replace_modules


class Shared(nn.Module):
    """One activation in two places, and a place that is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU()
        self.inner = nn.Sequential(nn.Linear(2, 2), self.first)
        self.register_module('empty', None)

    def forward(self, x):
        return self.inner(self.first(x))


def test_a_module_is_replaced_wherever_it_is_used():
    model, new = Shared(), nn.Tanh()
    linear = model.inner[0]
    assert replace_modules(model, {model.first: new}) is model
    assert model.first is model.inner[1] is new and model.inner[0] is linear
    assert list(model._modules) == ['first', 'inner', 'empty']


def test_the_model_itself_is_replaced():
    model, new = nn.ReLU(), nn.Tanh()
    assert replace_modules(model, {model: new}) is new


def test_hooks_and_their_handles_stay():
    model, new, calls = Shared(), nn.Tanh(), []
    handle = model.first.register_forward_hook(lambda *args: calls.append('after'))
    model.first.register_forward_pre_hook(lambda *args: calls.append('before'))
    replace_modules(model, {model.first: new})
    new(torch.ones(1))
    assert calls == ['before', 'after']
    handle.remove()
    new(torch.ones(1))
    assert calls == ['before', 'after', 'before']


def test_an_attribute_of_a_module_that_is_named_after_a_hook_stays_with_it():
    old, new = nn.ReLU(), nn.Tanh()
    old.my_hook_names = ['before']
    replace_modules(nn.Sequential(old), {old: new})
    assert not hasattr(new, 'my_hook_names')


def test_without_replacements_nothing_changes():
    model = Shared()
    before = dict(model.named_modules())
    assert replace_modules(model, {}) is model
    assert dict(model.named_modules()) == before
