"""A compiled model with synchronized layers against the eager one, on real processes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn

from sn_mm import SwitchNorm2d, distributed

WHOLE = hasattr(torch.library, 'register_fake')  # before torch 2.4 a graph breaks at each layer


@on_ranks(2, cases=[{'sync': True}, {'sync': 1}], timeout=180)
def test_one_graph_pools_over_the_ranks(rank: int, size: int, sync: bool | int) -> None:
    eager = nn.Sequential(nn.Conv2d(3, 8, 3), SwitchNorm2d(8, sync=sync), nn.ReLU(inplace=True))
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=WHOLE, backend='aot_eager')
    torch.manual_seed(rank)
    for _ in range(2):
        x = torch.randn(2 + rank, 3, 9, 8)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = eager(ours), compiled(theirs)
        torch.testing.assert_close(z, y)
        dy = torch.randn_like(y)
        y.backward(dy)
        z.backward(dy)
        torch.testing.assert_close(theirs.grad, ours.grad)
    for p, q in zip(eager.parameters(), twin.parameters()):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-4)
    for b, c in zip(eager.buffers(), twin.buffers()):
        torch.testing.assert_close(c, b)


class Branches(nn.Module):
    """Two layers whose order a compiler could change, and a third whose output nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unread = (SwitchNorm2d(c) for c in (3, 4, 5))

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        second = self.second(y)
        self.unread(z)
        return self.first(x), second


@pytest.mark.skipif(
    WHOLE and not hasattr(torch.serialization, 'safe_globals'),
    reason='torch 2.4 changes the order of collectives in a graph',
)
@on_ranks(2, cases=[{'backend': 'aot_eager'}, {'backend': 'inductor'}], timeout=240)
def test_the_collectives_of_a_compiled_model_keep_their_order(
    rank: int, size: int, backend: str
) -> None:
    """Eager on one rank, compiled on the other: the ranks meet in the same collectives."""
    distributed.constant_group(True)  # as on a rank that has compiled and runs eager since
    model = Branches()
    steps = torch.compile(model, fullgraph=WHOLE, backend=backend) if rank else model
    torch.manual_seed(rank)
    for _ in range(2):
        inputs = [torch.randn(2, c, 4, 4, requires_grad=True) for c in (3, 4, 5)]
        first, second = steps(*inputs)
        (first.square().sum() + second.square().sum()).backward()
    for name in ('first', 'second', 'unread'):
        mean = getattr(model, name).running_mean
        both = [torch.empty_like(mean) for _ in range(size)]
        dist.all_gather(both, mean)
        torch.testing.assert_close(*both)
