"""A compiled model with synchronised layers against the eager one, on real processes."""

from __future__ import annotations

import copy

import torch
from ranks import on_ranks
from torch import nn

from sn_mm import SwitchNorm2d


@on_ranks(2, cases=[{'sync': True}, {'sync': 1}], timeout=180)
def test_one_graph_pools_over_the_ranks(rank: int, size: int, sync: bool | int) -> None:
    eager = nn.Sequential(nn.Conv2d(3, 8, 3), SwitchNorm2d(8, sync=sync), nn.ReLU(inplace=True))
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend='aot_eager')
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
