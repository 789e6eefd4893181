"""Mixed precision on a CPU."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.errors import InputError


def wrapped(model: nn.Module, **settings: object):
    optimizer = dict(type='SGD', lr=0.1)
    return build_optim_wrapper(
        model, dict(type='sn_mm.BFloat16OptimWrapper', optimizer=optimizer, **settings)
    )


def test_a_model_runs_in_bfloat16_and_keeps_float32_weights_and_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), SwitchNorm2d(4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optim_wrapper = wrapped(model, clip_grad=dict(max_norm=1.0))
    with optim_wrapper.optim_context(model):
        y = model(torch.randn(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    optim_wrapper.update_params(y.float().square().mean() + y.float().mean())
    after = model.state_dict()
    assert {key: value.dtype for key, value in after.items()} == {
        key: value.dtype for key, value in before.items()
    }
    for key in ('0.weight', '1.weight', '1.running_var', '1.num_batches_tracked'):
        assert not torch.equal(after[key], before[key])


def test_an_operator_without_bfloat16_is_named_and_other_errors_pass() -> None:
    model = nn.Conv2d(3, 4, 1)
    optim_wrapper = wrapped(model)
    with pytest.raises(InputError, match=r'BFloat16.*test_bfloat16.py:\d+.*without mixed prec'):
        with optim_wrapper.optim_context(model):
            torch.special.airy_ai(model(torch.randn(1, 3, 4, 4)))
    with pytest.raises(RuntimeError, match='expected input'), optim_wrapper.optim_context(model):
        model(torch.randn(1, 2, 4, 4))
