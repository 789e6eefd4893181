"""What synchronizing the norms of Mask R-CNN R50-FPN costs, for 8 to 4096 ranks.

    bash tools/run_tests.sh tests/checks/test_scale.py --record

compares SN's collectives (forward and backward one all_reduce) with those of nn.SyncBatchNorm
(forward an all_gather, backward an all_reduce), in bytes by arithmetic and in time by the
alpha-beta model, and runs both among 2, 4 and 8 gloo processes on this machine. The tests hold the
arithmetic to counts by hand, and its bytes to those of real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn

from sn_mm import SwitchNorm2d, distributed
from sn_mm.output.markdown import markdown_table

from .record import machine, read_record, write_record
from .resnet import ResNet
from .scale import model
from .scale.measure import measure
from .scale.model import Collective, Cost, recursive_doubling, ring, tree

REDUCE = Collective('all_reduce', 10, 8)  # 80 bytes
GATHER = Collective('all_gather', 10, 4)  # 40 bytes


def test_the_first_layers_are_those_of_resnet_50():
    norms = [m for m in ResNet().modules() if isinstance(m, nn.BatchNorm2d)]
    channels = model.mask_rcnn_channels()
    assert channels[:53] == [norm.num_features for norm in norms]
    assert len(channels) == 69 and sum(channels) == 26_560 + 16 * 256


def test_bytes_of_a_layer_of_64_channels():
    forward, backward = model.of_sn(64)
    assert [forward.result(r) for r in (2, 512)] == [129 * 8] * 2
    assert [backward.result(r) for r in (2, 512)] == [128 * 4] * 2
    forward, backward = model.of_sync_batch_norm(64)
    assert [forward.result(r) for r in (2, 512)] == [2 * 129 * 4, 512 * 129 * 4]
    assert [backward.result(r) for r in (2, 512)] == [128 * 4] * 2


@pytest.mark.parametrize(
    ('algorithm', 'collective', 'ranks', 'cost'),
    [
        (ring, REDUCE, 2, Cost(2, 80)),
        (ring, REDUCE, 4, Cost(6, 120)),
        (ring, REDUCE, 8, Cost(14, 140)),
        (ring, GATHER, 4, Cost(3, 120)),
        (ring, GATHER, 8, Cost(7, 280)),
        (recursive_doubling, REDUCE, 8, Cost(3, 240)),
        (recursive_doubling, GATHER, 8, Cost(3, 40 + 80 + 160)),
        (tree, REDUCE, 8, Cost(6, 6 * 80)),
        # To the root 1, 2 and 4 parts, all eight parts three times back.
        (tree, GATHER, 8, Cost(6, 40 + 80 + 160 + 3 * 320)),
    ],
)
def test_costs_counted_by_hand(algorithm, collective, ranks, cost):
    assert algorithm(collective, ranks) == cost


@pytest.mark.parametrize('ranks', [2, 3, 4, 7])
def test_a_ring_that_is_played_through_costs_what_the_formula_says(ranks):
    """Ranks pass parts of their numbers on, twice round: all end with the sum."""
    numbers = [[float(rank * ranks + part) for part in range(ranks)] for rank in range(ranks)]
    total = [sum(column) for column in zip(*numbers)]
    rounds = received = 0
    for lap in range(2):
        for shift in range(ranks - 1):
            parts = [(rank - shift + lap) % ranks for rank in range(ranks)]
            sent = [numbers[rank][part] for rank, part in enumerate(parts)]
            for rank, part in enumerate(parts):
                after = (rank + 1) % ranks
                kept = numbers[after][part] if lap == 0 else 0
                numbers[after][part] = kept + sent[rank]
            rounds, received = rounds + 1, received + 1
    assert numbers == [total] * ranks
    assert ring(Collective('all_reduce', ranks, 1), ranks) == Cost(rounds, received)


@pytest.mark.parametrize('ranks', [2, 4, 8])
def test_recursive_doubling_that_is_played_through_costs_what_the_formula_says(ranks):
    sums, sets = list(range(ranks)), [{rank} for rank in range(ranks)]
    rounds = of_reduce = of_gather = 0
    while 2**rounds < ranks:
        others = [rank ^ 2**rounds for rank in range(ranks)]
        of_gather += len(sets[0])
        sums = [sums[rank] + sums[other] for rank, other in enumerate(others)]
        sets = [sets[rank] | sets[other] for rank, other in enumerate(others)]
        rounds, of_reduce = rounds + 1, of_reduce + 1
    assert sums == [sum(range(ranks))] * ranks and sets == [set(range(ranks))] * ranks
    assert recursive_doubling(Collective('all_reduce', 1, 1), ranks) == Cost(rounds, of_reduce)
    assert recursive_doubling(Collective('all_gather', 1, 1), ranks) == Cost(rounds, of_gather)


def test_a_training_step_adds_up_its_layers():
    record = model.simulate([1, 2], ranks=4, alpha=1.0, bandwidth=2.0)
    sn, batch = record['SN'], record['SyncBatchNorm']
    assert sn['forward_bytes'] == (3 + 5) * 8 and batch['forward_bytes'] == 4 * (3 + 5) * 4
    assert sn['backward_bytes'] == batch['backward_bytes'] == (2 + 4) * 4
    assert sn['received_bytes']['ring'] == 1.5 * (64 + 24)
    assert batch['received_bytes']['ring'] == 3 * 32 + 1.5 * 24
    assert sn['seconds']['ring'] == 4 * 6 + 1.5 * 88 / 2
    assert batch['seconds']['ring'] == 2 * 3 + 2 * 6 + (96 + 36) / 2
    assert sn['seconds']['recursive doubling'] == 4 * 2 + 2 * 88 / 2


# --- the page, and real processes -----------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'ranks_measured' in metafunc.fixturenames:
        recorded = metafunc.config.getoption('record')
        metafunc.parametrize('ranks_measured', (2, 4, 8) if recorded else (2,))


def of_both(record: dict, value: Callable[[dict], float], digits: int) -> str:
    """SN / SyncBatchNorm."""
    return ' / '.join(f'{value(record[scheme]):,.{digits}f}' for scheme in model.SCHEMES)


def arithmetic() -> str:
    """The table of a training step on each rank."""
    rows = []
    for ranks in model.RANKS:
        record = model.simulate(model.mask_rcnn_channels(), ranks)
        row = [
            of_both(record, lambda scheme: scheme['forward_bytes'] / 1e6, 2),
            of_both(record, lambda scheme: scheme['received_bytes']['ring'] / 1e6, 2),
        ]
        for name in model.ALGORITHMS:
            row.append(of_both(record, lambda scheme, k=name: 1e3 * scheme['seconds'][k], 1))
        rows.append([str(ranks), *row])
    head = ['ranks', 'results of forward, MB', 'received, ring, both passes, MB']
    return markdown_table([*head, *(f'{name}, ms' for name in model.ALGORITHMS)], rows)


def test_the_page_shows_the_arithmetic(pytestconfig: pytest.Config):
    pytest.importorskip('rich')
    if pytestconfig.getoption('record'):
        write_record('scale.md', 'arithmetic', arithmetic())
    assert read_record('scale.md', 'arithmetic') == arithmetic()


@pytest.fixture(scope='module')
def rows(request: pytest.FixtureRequest) -> Iterator[list[list[str]]]:
    """The record of what was measured."""
    rows: list[list[str]] = []
    yield rows
    if request.config.getoption('record'):
        head = [
            'processes', 'norms', 'forward, MB', 'backward, MB', 'forward, ms', 'backward, ms',
            'both, ms', 'model, ms', 'alpha, ms',
        ]  # fmt: skip
        write_record('scale.md', 'measured', f'{markdown_table(head, rows)}\n\n{machine()}.')


def test_measured_tensors_have_the_bytes_of_the_model(
    ranks_measured: int, rows: list[list[str]], pytestconfig: pytest.Config
):
    recorded = pytestconfig.getoption('record')
    channels, repeats = (model.mask_rcnn_channels(), 15) if recorded else ([3, 8], 2)
    measured = measure(channels, ranks_measured, repeats)
    simulated = model.simulate(channels, ranks_measured)
    assert measured['alpha'] > 0 and measured['bandwidth'] > 0
    for scheme in model.SCHEMES:
        found = measured[scheme]
        sizes = [found[f'{name}_bytes'] for name in ('forward', 'backward')]
        assert sizes == [simulated[scheme][f'{name}_bytes'] for name in ('forward', 'backward')]
        forward, backward = found['forward_seconds'], found['backward_seconds']
        times = [forward, backward, forward + backward, found['model_seconds'], measured['alpha']]
        assert min(times) > 0
        numbers = [*(f'{k / 1e6:.2f}' for k in sizes), *(f'{1e3 * k:,.2f}' for k in times)]
        rows.append([str(ranks_measured), scheme, *numbers])


@on_ranks(2)
def test_a_layer_gives_what_the_model_says(rank, size):
    layer, given = SwitchNorm2d(5), []
    all_reduce = dist.all_reduce

    def recorded(tensor, *args, **kwargs):
        given.append((tensor.numel(), tensor.element_size()))
        return all_reduce(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, '_FEW_RANKS', 0)  # as on accelerators
        patch.setattr(dist, 'all_reduce', recorded)
        layer(torch.randn(2, 5, 3, 3, requires_grad=True)).sum().backward()
    assert given == [(c.numbers, c.size) for c in model.of_sn(5)]
