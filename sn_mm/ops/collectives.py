"""Process groups and collectives as ``torch.compile`` takes them into its graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .custom_ops import define_operator

__all__ = ['all_gather', 'all_reduce']


def _group(name: str) -> Any:
    resolve: Any = dist.distributed_c10d._resolve_process_group
    return resolve(name)


def _all_gather(mine: Tensor, group: str, size: int) -> Tensor:
    ranks = mine.new_empty(size, mine.shape[1])
    dist.all_gather(list(ranks.split(1)), mine.contiguous(), group=_group(group))
    return ranks


def _all_reduce(sums: Tensor, group: str) -> Tensor:
    total = sums.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=_group(group))
    return total


all_gather = define_operator(
    'all_gather(Tensor mine, str group, int size) -> Tensor',
    _all_gather,
    lambda mine, group, size: mine.new_empty(size, mine.shape[1]),
)
all_reduce = define_operator(
    'all_reduce(Tensor sums, str group) -> Tensor',
    _all_reduce,
    lambda sums, group: torch.empty_like(sums),
)
