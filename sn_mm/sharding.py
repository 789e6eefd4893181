"""Weights of which every rank holds a part: FSDP1 and FSDP2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from .errors import InputError


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP shards a model or a part of it."""
    return _has(model, 'FullyShardedDataParallel', 'FSDPModule')


@contextmanager
def full_weights(model: nn.Module) -> Iterator[None]:
    """Holds the weights that FSDP1 shards in full on each rank, for reading.

    It is a collective where there are any. FSDP2 shards each weight by itself: see
    :func:`full_weight`.
    """
    with ExitStack() as stack:
        if _has(model, 'FullyShardedDataParallel'):
            fsdp1: Any = sys.modules['torch.distributed.fsdp'].FullyShardedDataParallel
            stack.enter_context(fsdp1.summon_full_params(model, writeback=False))
        yield


def full_weight(weight: Any, size: int) -> Tensor:
    """A weight of a layer in full. It is a collective where FSDP2 shards the weight.

    Args:
        weight: (size,), or this rank's part of it.
        size: Its number of elements.

    Raises:
        InputError: FSDP1 shards it, outside of :func:`full_weights`.
    """
    if hasattr(weight, 'full_tensor'):
        return weight.full_tensor()
    # FSDP1 leaves an empty weight, or one whose memory is freed.
    if weight.numel() != size or not weight.untyped_storage().nbytes():
        raise InputError(
            'a weight that FullyShardedDataParallel shards is read on all ranks within '
            'FullyShardedDataParallel.summon_full_params(model)'
        )
    return weight


def placed_as(weight: Any, values: Tensor) -> Tensor:
    """``values``, the same on all ranks, sharded as FSDP2 shards ``weight``."""
    if not hasattr(weight, 'placements'):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values.to(weight), weight.device_mesh, weight.placements)


def _has(model: nn.Module, *names: str) -> bool:
    """Whether a part of a model is of these classes of FSDP, which it has then imported."""
    fsdp = sys.modules.get('torch.distributed.fsdp')
    kinds = tuple(getattr(fsdp, name) for name in names if hasattr(fsdp, name))
    return any(isinstance(module, kinds) for module in model.modules())
