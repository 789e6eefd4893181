"""Process groups of synchronised layers, and their two collectives."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from .tracing import is_compiling

# The layers' own groups by size, for as long as the default group that they are parts of.
_GROUPS: WeakKeyDictionary[ProcessGroup, dict[int, ProcessGroup]] = WeakKeyDictionary()


def check_sync(sync: bool | int) -> None:
    """Checks the layer's ``sync`` argument.

    Raises:
        ValueError: ``sync`` is neither a bool nor a positive int.
    """
    if not isinstance(sync, bool) and (not isinstance(sync, int) or sync < 1):
        raise ValueError(
            f'sync must be True (all ranks), False (local) or a number of ranks >= 1, got {sync!r}'
        )


def resolve_group(
    sync: bool | int, process_group: ProcessGroup | None = None
) -> ProcessGroup | None:
    """The group over which a layer pools its batch statistics now, None for a local layer.

    Args:
        sync: True for ``process_group`` (default: all ranks), False for local statistics, k for
            groups of k consecutive ranks. All ranks must ask for the same groups in the same order.
        process_group: The group that ``sync=True`` stands for.

    Without ``process_group`` the group is the layers' own, apart from the default one:
    DistributedDataParallel reduces gradients there as they become ready, which with
    ``find_unused_parameters`` is at another moment on every rank.

    Raises:
        ValueError: The number of ranks is not a multiple of k.
    """
    if sync is False or not dist.is_available() or not dist.is_initialized():
        return None
    ranks = dist.get_world_size(process_group)
    if ranks < 2 or process_group is not None:
        return process_group if ranks > 1 else None
    size = ranks if sync is True else sync
    return _consecutive_ranks(size, dist.group.WORLD) if size > 1 else None


# Called while a model is traced: process groups exist before it is compiled.
constant_group = torch.compiler.assume_constant_result(resolve_group)


def _consecutive_ranks(size: int, world: Any) -> ProcessGroup:
    """The group of ``size`` consecutive ranks that this rank is in; made once per ``world``.

    It waits for a rank as long as ``world`` does: by itself torch gives a new group its default.
    """
    groups = _GROUPS.setdefault(world, {})
    if size in groups:
        return groups[size]
    ranks = dist.get_world_size(world)
    if ranks % size:
        raise ValueError(
            f'sync={size} needs a number of ranks that {size} divides, got {ranks} ranks'
        )
    options: Any = getattr(world._get_backend(world._device_types[0]), 'options', None)
    given: Any = {'timeout': options._timeout} if hasattr(options, '_timeout') else {}
    groups[size] = dist.new_subgroups(group_size=size, group=world, **given)[0]
    return groups[size]


def check_same_channels(channels: int, device: torch.device, process_group: ProcessGroup) -> None:
    """One small collective that compares the number of channels over the ranks.

    Raises:
        ValueError: The ranks disagree. Raised on every rank.
    """
    mine = torch.tensor([channels], device=device)
    all_channels = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(all_channels, mine, group=process_group)
    found = [int(c) for c in all_channels]
    if len(set(found)) > 1:
        raise ValueError(
            f'a synchronised layer needs the same num_features on every rank, got {found} on '
            f'ranks {dist.get_process_group_ranks(process_group)}'
        )


def gather_moments(
    count: int, mean: Tensor, var: Tensor, process_group: ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward collective: every rank's count, mean and variance, 2C + 1 numbers a rank.

    Args:
        count: Positions on this rank, 0 for an empty batch.
        mean, var: (1, C) each.
        process_group: The group; every rank of it must call.

    Returns:
        counts (R, 1), means (R, C) and variances (R, C) of the R ranks.
    """
    channels = mean.shape[1]
    mine = torch.cat([mean.new_full((1, 1), count), mean, var], 1)
    ranks = _all_gather(mine, process_group)
    counts, means, variances = ranks.split([1, channels, channels], 1)
    return counts, means, variances


def _all_gather(mine: Tensor, process_group: ProcessGroup) -> Tensor:
    if is_compiling():
        from .ops.collectives import all_gather

        return all_gather(mine, process_group.group_name, dist.get_world_size(process_group))
    ranks = mine.new_empty(dist.get_world_size(process_group), mine.shape[1])
    dist.all_gather(list(ranks.split(1)), mine, group=process_group)
    return ranks


def sum_over_ranks(sums: Tensor, process_group: ProcessGroup) -> Tensor:
    """The backward collective: from ``sums`` (2, 1, C) of this rank to those of all ranks."""
    if is_compiling():
        from .ops.collectives import all_reduce

        return all_reduce(sums, process_group.group_name)
    dist.all_reduce(sums, group=process_group)
    return sums
