"""What torch's tests check of SyncBatchNorm; the judge is BatchNorm on the union of the batches."""

from __future__ import annotations

import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sn_mm import SwitchNorm1d, SwitchNorm2d

CASES = [
    {'name': name, 'affine': affine}
    for name in ('2-D input', 'one sample a rank', 'maps')
    for affine in (True, False)
]
SHAPES = {'2-D input': (3, 4), 'one sample a rank': (1, 4), 'maps': (2, 4, 3, 5)}


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    first = nn.Conv2d(4, 4, 1) if isinstance(norm, (SwitchNorm2d, nn.BatchNorm2d)) else None
    return nn.Sequential(first or nn.Linear(4, 4), norm).double()


def step(model: nn.Module, x: Tensor, weight: Tensor) -> None:
    (model(x).sin() * weight).sum().backward()


@on_ranks(2, cases=CASES)
def test_ddp_equals_batch_norm_of_the_union(rank: int, size: int, name: str, affine: bool) -> None:
    shape = SHAPES[name]
    kinds = (SwitchNorm1d, nn.BatchNorm1d) if len(shape) == 2 else (SwitchNorm2d, nn.BatchNorm2d)
    torch.manual_seed(0)
    union = torch.randn(size, *shape, dtype=torch.float64) * 2 + 1
    weight = torch.randn_like(union)
    ours = network(kinds[0](4, affine=affine, normalizers=['bn']))
    wrapped = DistributedDataParallel(ours, broadcast_buffers=False)
    theirs = network(kinds[1](4, affine=affine))
    step(wrapped, union[rank], weight[rank])
    step(theirs, union.flatten(0, 1), weight.flatten(0, 1))
    judge = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        if key in judge:  # DistributedDataParallel averages over the ranks
            torch.testing.assert_close(parameter.grad * size, judge[key].grad)
    for key, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(key), buffer)
