"""Torch-Pruning cuts channels out of SN, by the example of the documentation."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm2d

pytest.importorskip('torch_pruning')
DOCS = Path(__file__).parents[2] / 'docs'


def example() -> str:
    pages = (page.read_text() for page in sorted(DOCS.rglob('*.md')))
    blocks = (block for page in pages for block in re.findall(r'```python\n(.*?)```', page, re.S))
    (found,) = (block for block in blocks if 'import torch_pruning' in block)
    return found


def prune(model: nn.Module) -> nn.Module:
    names: dict[str, Any] = {
        'model': model,
        'example_inputs': torch.randn(2, 3, 8, 8),
        'ignored_layers': [model[-1]],
    }
    exec(example(), names)
    return model


def network(**layer: Any) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), SwitchNorm2d(8, **layer), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    model(torch.randn(4, 3, 8, 8))
    return model


def test_statistics_are_cut_with_the_channels():
    model = network(init_importance='bn')
    before = copy.deepcopy(model)
    pruned = prune(model)[1]
    kept = [before[1].running_mean.tolist().index(m) for m in pruned.running_mean.tolist()]
    assert pruned.num_features == len(kept) == 4
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
        assert torch.equal(getattr(pruned, name), getattr(before[1], name)[kept]), name
    x = torch.randn(2, 3, 8, 8)
    features = before.eval()[:2](x)[:, kept]
    torch.testing.assert_close(model.eval()[:2](x), features, rtol=1e-4, atol=1e-5)
    model.train()(x).sum().backward()


def test_a_layer_without_the_batch_scope_is_cut_too():
    model = prune(network(normalizers=('in', 'ln')))
    assert model[1].num_features == 4 and model(torch.randn(2, 3, 8, 8)).shape[1] == 2
