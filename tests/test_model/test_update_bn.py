"""update_bn measures what torch's function of that name measures, on SN too."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import update_bn as torchs

from sn_mm import SwitchNorm2d, update_bn
from sn_mm.errors import InputError

PAGE = Path(__file__).parents[2] / 'docs/use/training.md'


def batches() -> list[Tensor]:
    return [torch.randn(n, 3, 5, 4) + n for n in (2, 3, 1)]


def network(norm: type[nn.Module]) -> AveragedModel:
    torch.manual_seed(1)
    return AveragedModel(nn.Sequential(nn.Conv2d(3, 4, 2), norm(4), nn.ReLU(), nn.BatchNorm2d(4)))


@pytest.mark.parametrize('pairs', [False, True], ids=['tensors', 'tuples'])
def test_it_is_torchs_function_on_batch_norm(pairs):
    loader = [(x, 'label') for x in batches()] if pairs else batches()
    ours, theirs = network(nn.BatchNorm2d), network(nn.BatchNorm2d)
    update_bn(loader, ours, torch.device('cpu'))
    torchs(loader, theirs)
    for (name, value), expected in zip(ours.named_buffers(), theirs.buffers()):
        if 'running' in name:
            torch.testing.assert_close(value, expected)


def test_sn_gets_the_statistics_that_batch_norm_would_get():
    loader = batches()
    ours, theirs = network(SwitchNorm2d), network(nn.BatchNorm2d)
    norm = ours.module[1]
    update_bn(loader, ours)
    torchs(loader, theirs)
    for name in ('running_mean', 'running_var'):
        torch.testing.assert_close(getattr(norm, name), getattr(theirs.module[1], name))
    assert norm.momentum == 0.1 and ours.training


def test_torchs_function_leaves_sn_as_it_is():
    """The page says so."""
    model = nn.Sequential(SwitchNorm2d(3))
    before = copy.deepcopy(model.state_dict())
    torchs(batches(), model)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_without_running_statistics_nothing_runs():
    update_bn(
        iter([object()]), nn.Sequential(nn.GroupNorm(1, 3), SwitchNorm2d(3, normalizers='in'))
    )


def test_an_empty_loader_is_refused():
    with pytest.raises(InputError, match='statistics and ran'):
        update_bn([], nn.Sequential(SwitchNorm2d(3)))


def test_a_data_parallel_wrapper_is_refused():
    class Wrapped(DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(InputError, match='inside DistributedDataParallel'):
        update_bn(batches(), Wrapped(nn.Sequential(SwitchNorm2d(3))))


def blocks() -> list[str]:
    section = PAGE.read_text().partition('## Averaged weights')[2]
    return re.findall(r'```python\n(.*?)```', section, re.DOTALL)


def test_the_pages_example_runs():
    names: dict = {}
    exec(blocks()[0], names)
    own, averaged = names['model'][1], names['averaged'].module[1]
    assert not torch.equal(own.running_mean, averaged.running_mean)
    inputs = [names['averaged'].module[0](x) for x, _ in names['loader']]
    assert (averaged.running_mean - torch.cat(inputs).mean((0, 2, 3))).abs().max() < 1e-5


def test_the_pages_hooks_build():
    pytest.importorskip('mmengine')
    from mmengine.config import Config
    from mmengine.hooks import EMAHook
    from mmengine.registry import HOOKS

    from sn_mm.engine.hooks import PreciseSNHook

    config = Config.fromstring(blocks()[1], '.py')
    hooks = [HOOKS.build(hook) for hook in config.custom_hooks]
    assert [type(hook) for hook in hooks] == [EMAHook, PreciseSNHook]
