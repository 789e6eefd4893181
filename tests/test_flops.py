"""FLOP counters count SN as they count other norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from sn_mm import SwitchNorm2d


@pytest.mark.skipif(
    not hasattr(flop_counter, 'flop_registry'), reason='torch < 2.2 counts its own operators only'
)
def test_torchs_counter_names_the_passes():
    layer = SwitchNorm2d(4)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    counts = {str(k): n / x.numel() for k, n in counter.get_flop_counts()['Global'].items()}
    ops = torch.ops.sn_mm
    expected = {ops.measure: 3, ops.normalize: 2, ops.reduce: 4, ops.propagate: 5}
    assert counts == {str(op): n for op, n in expected.items()}


def test_counting_changes_nothing():
    layer = SwitchNorm2d(4)
    x = torch.randn(2, 4, 6, 6)
    with FlopCounterMode(display=False):
        y = layer(x)
    assert layer.num_batches_tracked == 1 and layer.running_mean.abs().sum() > 0
    torch.testing.assert_close(SwitchNorm2d(4)(x), y)


@pytest.mark.filterwarnings('ignore')
def test_mmengines_counter_counts_as_much_as_for_group_norm():
    analysis = pytest.importorskip('mmengine.analysis')
    flops = {}
    for norm in (SwitchNorm2d(8), nn.GroupNorm(2, 8), nn.Identity()):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm).eval()
        info = analysis.get_model_complexity_info(model, (3, 18, 18), show_table=False)
        flops[type(norm)] = info['flops']
    assert flops[SwitchNorm2d] == flops[nn.GroupNorm] == flops[nn.Identity] + 5 * 8 * 16 * 16
