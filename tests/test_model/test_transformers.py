"""Models of Transformers: from_pretrained, and a conversion after it or inside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm, convert_switch_norm

transformers = pytest.importorskip('transformers')


class Converted(transformers.ResNetForImageClassification):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        convert_switch_norm(self)
        self.post_init()


def logits(model: nn.Module) -> list[torch.Tensor]:
    layers = [module for module in model.modules() if isinstance(module, SwitchNorm)]
    return [weight for layer in layers for weight in (layer.mean_weight, layer.var_weight)]


def test_what_is_converted_after_from_pretrained_loads_whole_into_a_class_that_converts(
    tmp_path: Path,
) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    model = transformers.ResNetForImageClassification(config).train()
    model(torch.randn(4, 3, 32, 32))  # statistics
    model.save_pretrained(tmp_path / 'bn')

    model = transformers.ResNetForImageClassification.from_pretrained(tmp_path / 'bn')
    convert_switch_norm(model)
    assert {round(w.softmax(0)[2].item(), 4) for w in logits(model)} == {0.9}
    logits(model)[0].data[0] = 9
    model.save_pretrained(tmp_path / 'sn')
    with pytest.warns(UserWarning, match='importance uninitialized unless the file has it'):
        loaded = Converted.from_pretrained(tmp_path / 'sn')
    assert all(torch.equal(*pair) for pair in zip(logits(loaded), logits(model)))
