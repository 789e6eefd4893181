"""The batch average over ranks: the same everywhere, and pooled as the layers pool in training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn

from sn_mm import SwitchNorm2d
from sn_mm.model.batch_average import measure_batch_average

CASES = [{'sync': sync} for sync in (True, False)]


def batches(rank: int) -> list[Tensor]:
    """Mini-batches of one rank; the second one's are larger, and its last one is empty."""
    generator = torch.Generator().manual_seed(rank)
    sizes = [(2, 3, 4, 5), (1, 3, 6, 4)] if rank == 0 else [(3, 3, 6, 6), (0, 3, 2, 2)]
    return [torch.randn(size, generator=generator) + rank for size in sizes]


def rows(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


@on_ranks(2, cases=CASES)
def test_all_ranks_end_with_the_average_of_all_mini_batches(
    rank: int, size: int, sync: bool
) -> None:
    model = nn.Sequential(
        SwitchNorm2d(3, sync=sync, process_group=dist.group.WORLD if sync else None)
    )
    measured = measure_batch_average(model, batches(rank), lambda m, x: m(x))
    per_rank = [[rows(x) for x in batches(r)] for r in range(size)]
    if sync:
        pooled = [torch.cat(parts, 1) for parts in zip(*per_rank)]
    else:
        pooled = [x for parts in per_rank for x in parts if x.numel()]
    mean = torch.stack([x.mean(1) for x in pooled]).mean(0)
    var = torch.stack([x.var(1) for x in pooled]).mean(0)
    torch.testing.assert_close(measured['0.running_mean'], mean)
    torch.testing.assert_close(measured['0.running_var'], var)
    for value in measured.values():
        everywhere = [torch.empty_like(value) for _ in range(size)]
        dist.all_gather(everywhere, value)
        assert all(torch.equal(value, other) for other in everywhere)
