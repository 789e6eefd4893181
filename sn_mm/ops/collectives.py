"""The collective as an operator, which ``torch.compile`` takes into its graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed import all_reduce_in_place
from .custom_ops import define_operator

__all__ = ['all_reduce']


def _all_reduce(numbers: Tensor, group: str) -> Tensor:
    resolve: Any = dist.distributed_c10d._resolve_process_group
    total = numbers.clone(memory_format=torch.contiguous_format)
    all_reduce_in_place(total, resolve(group))
    return total


all_reduce = define_operator(
    'all_reduce(Tensor numbers, str group) -> Tensor',
    _all_reduce,
    lambda numbers, group: torch.empty_like(numbers),
)
