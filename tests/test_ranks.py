"""tests/ranks.py: ranks that fail, die or hang are seen, killed and replaced."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
import torch.distributed as dist
from ranks import Ranks, RanksFailed
from torch import nn, randn

from sn_mm import SwitchNorm2d, name_layers


@pytest.fixture(scope='module')
def two_ranks():
    ranks = Ranks(2)
    yield ranks
    ranks.stop()


def own_rank(rank: int) -> int:
    return dist.get_rank()


def hang_on_one(rank: int) -> None:
    time.sleep(60 * rank)


def raise_on_one(rank: int) -> None:
    if rank:
        raise KeyError('it broke')


def die_on_one(rank: int) -> None:
    if rank:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('work', 'error', 'hung'),
    [
        (hang_on_one, 'not finished in 2 s', True),
        (raise_on_one, "KeyError: 'it broke'", False),
        (die_on_one, 'died with exit code 1', False),
    ],
)
def test_a_rank_that_hangs_raises_or_dies_is_named_and_all_are_replaced(
    two_ranks, work, error, hung
):
    assert two_ranks.run(own_rank) == [0, 1]
    before = [process.pid for process in two_ranks.processes]
    with pytest.raises(RanksFailed) as failed:
        two_ranks.run(work, limit=2)
    assert list(failed.value.errors) == [1] and failed.value.errors[1].endswith(error)
    assert failed.value.hung is hung
    assert not any(map(psutil.pid_exists, before))


def die_before_a_layer(rank: int) -> None:
    net = nn.ModuleDict({'conv': nn.Conv2d(3, 4, 1), 'bn1': SwitchNorm2d(4)})
    name_layers(net)['bn1'](net['conv'](randn(2, 3, 4, 4))).sum().backward()
    if rank:
        os._exit(1)
    net['bn1'](randn(2, 4, 4, 4))


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_with_the_name_of_a_layer(two_ranks):
    with pytest.raises(RanksFailed) as failed:
        two_ranks.run(die_before_a_layer)
    errors = failed.value.errors
    assert errors[1] == 'died with exit code 1'
    last = errors[0].splitlines()[-1]
    assert 'bn1 (num_features=4) waited forward for the ranks [0, 1] on rank 0, in vain' in last


@pytest.mark.slow
def test_a_rank_that_has_died_since_the_last_work_is_not_replaced_silently(two_ranks):
    two_ranks.run(own_rank)
    os.kill(two_ranks.processes[1].pid, signal.SIGTERM)
    time.sleep(1)
    with pytest.raises(RanksFailed) as failed:
        two_ranks.run(own_rank)
    assert failed.value.errors == {1: 'died with exit code -15'}
    assert two_ranks.run(own_rank) == [0, 1]
