"""Mixed precision with dynamic loss scaling: overflows and the running statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sn_mm import SwitchNorm2d

STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def assert_same_statistics(sn: nn.Module, bn: nn.Module, rtol: float = 1e-5) -> None:
    for name in STATISTICS:
        torch.testing.assert_close(
            getattr(sn, name), getattr(bn, name), rtol=rtol, atol=1e-6, equal_nan=True, msg=name
        )


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 8, 8)


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='torch < 2.3 scales on CUDA alone')
def test_a_step_that_overflows_moves_nothing_but_the_statistics_as_in_batch_norm() -> None:
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), norm(4)) for norm in (SwitchNorm2d, nn.BatchNorm2d)]
    models[1][0].load_state_dict(models[0][0].state_dict())
    scalers = [torch.amp.GradScaler('cpu', 2.0**120, backoff_factor=2.0**-110) for _ in models]
    batches = [images() for _ in range(2)]
    before = {key: p.clone() for key, p in models[0].named_parameters()}
    for step, batch in enumerate(batches):
        for model, scaler in zip(models, scalers):
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            optimizer.zero_grad()
            with torch.autocast('cpu', dtype=torch.float16):
                y = model(batch)
            scaler.scale((y.float() - batch[:, :1, 1:-1, 1:-1]).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        if step == 0:
            assert_same_statistics(models[0][1], models[1][1])
        moved = [key for key, p in models[0].named_parameters() if not torch.equal(p, before[key])]
        assert moved == ([] if step == 0 else list(before))
    assert models[0][1].num_batches_tracked == 2
    assert all(value.isfinite().all() for value in models[0].state_dict().values())
    assert [scaler.get_scale() for scaler in scalers] == [2.0**10] * 2


@pytest.mark.parametrize('value', [float('inf'), float('-inf'), float('nan'), 65504.0])
@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32], ids=str)
def test_an_overflow_in_the_input_spoils_the_channels_that_it_spoils_in_batch_norm(
    dtype: torch.dtype, memory_format: torch.memory_format, momentum: float | None, value: float
) -> None:
    sn, bn = SwitchNorm2d(5, momentum=momentum), nn.BatchNorm2d(5, momentum=momentum)
    for at in (None, (1, 2, 3, 4), None):
        x = images(5).to(dtype).contiguous(memory_format=memory_format)
        if at:
            x[at] = value
        sn(x)
        bn(x.float())
    assert_same_statistics(sn, bn, rtol=1e-4)
    spoilt = torch.tensor(value).isfinite().logical_not() & (torch.arange(5) == 2)
    assert torch.equal(sn.running_var.isfinite(), ~spoilt)
