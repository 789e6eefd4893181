"""Models of Transformers: from_pretrained, and a conversion before or after it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm, convert_switch_norm

transformers = pytest.importorskip('transformers')


class Converted(transformers.ResNetForImageClassification):
    """As docs/troubleshooting.md has it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        convert_switch_norm(self)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SwitchNorm):
            module.take_over_batch_norm()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ResNet with measured statistics."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    model = transformers.ResNetForImageClassification(config).train()
    model(torch.randn(4, 3, 32, 32))
    model.save_pretrained(tmp_path)
    return tmp_path


def shares(model: nn.Module) -> set[float]:
    layers = [module for module in model.modules() if isinstance(module, SwitchNorm)]
    assert layers
    return {round(layer.importance()[s]['bn'], 4) for layer in layers for s in ('mean', 'var')}


def test_converted_after_it_a_model_starts_from_its_batch_norm(folder: Path) -> None:
    model = transformers.ResNetForImageClassification.from_pretrained(folder)
    assert shares(convert_switch_norm(model)) == {0.9}


def test_a_class_that_converts_itself_is_told_of_the_importance(folder: Path) -> None:
    with pytest.warns(UserWarning, match='from_pretrained .* initialises no importance'):
        model = Converted.from_pretrained(folder)
    assert shares(model) == {0.9}
    model.resnet.embedder.embedder.normalization.mean_weight.data[0] = 9
    learned = shares(model)
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert shares(Converted.from_pretrained(folder)) == learned != {0.9}
