"""Process groups of synchronised layers, and their two collectives."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, _functional_collectives

from .errors import InputError
from .tracing import is_compiling

# The layers' own groups by size, for as long as the default group that they are parts of.
_GROUPS: WeakKeyDictionary[ProcessGroup, dict[int, ProcessGroup]] = WeakKeyDictionary()
_CALLS: WeakKeyDictionary[ProcessGroup, int] = WeakKeyDictionary()

CHECKED_CALLS = 512
"""The collectives of a group before which the ranks compare their channels."""


def check_sync(sync: bool | int) -> None:
    """Checks the layer's ``sync`` argument.

    Raises:
        InputError: ``sync`` is neither a bool nor a positive int.
    """
    if not isinstance(sync, bool) and (not isinstance(sync, int) or sync < 1):
        raise InputError(
            f'sync must be True (all ranks), False (local) or a number of ranks >= 1, got {sync!r}'
        )


def check_group(process_group: ProcessGroup | None) -> None:
    """Checks the ``process_group`` argument.

    ``torch.distributed.new_group`` gives the ranks outside of a group a placeholder: it passes, and
    their layers are local.

    Raises:
        InputError: It is neither a process group nor None.
    """
    if process_group is None or isinstance(process_group, ProcessGroup):
        return
    if process_group is not dist.GroupMember.NON_GROUP_MEMBER:
        raise InputError(
            f'process_group must be a torch.distributed.ProcessGroup or None, got {process_group!r}'
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
    DistributedDataParallel reduces gradients over that as they become ready, which with
    ``find_unused_parameters`` is at another moment on every rank.

    Raises:
        InputError: The number of ranks is not a multiple of k.
    """
    if sync is False or not dist.is_available() or not dist.is_initialized():
        return None
    ranks = dist.get_world_size(process_group)
    if ranks < 2 or process_group is not None:
        return process_group if ranks > 1 else None
    size = ranks if sync is True else sync
    return _consecutive_ranks(size, dist.group.WORLD) if size > 1 else None


@torch.compiler.assume_constant_result
def constant_group(
    sync: bool | int, process_group: ProcessGroup | None = None
) -> ProcessGroup | None:
    """:func:`resolve_group` while a model is traced: groups exist before it is compiled.

    A rank may later fall back to running the layer as it is, alone: so a group's checks, which
    compiled layers do not make, end here on all ranks.
    """
    group = resolve_group(sync, process_group)
    if group is not None:
        _CALLS[group] = CHECKED_CALLS
    return group


def _consecutive_ranks(size: int, world: Any) -> ProcessGroup:
    """The group of ``size`` consecutive ranks that this rank is in; made once per ``world``.

    It waits for a rank as long as ``world`` does: by itself torch gives a new group its default.
    """
    groups = _GROUPS.setdefault(world, {})
    if size in groups:
        return groups[size]
    ranks = dist.get_world_size(world)
    if ranks % size:
        raise InputError(
            f'sync={size} needs a number of ranks that {size} divides, got {ranks} ranks'
        )
    options: Any = getattr(world._get_backend(world._device_types[0]), 'options', None)
    given: Any = {'timeout': options._timeout} if hasattr(options, '_timeout') else {}
    groups[size] = dist.new_subgroups(group_size=size, group=world, **given)[0]
    return groups[size]


def sum_over_ranks(numbers: Tensor, process_group: ProcessGroup) -> Tensor:
    """Both collectives: the sum of ``numbers`` over the ranks of the group, each of which calls.

    Eager, ``numbers`` itself is changed.

    Args:
        numbers: (2C + 1,) forward, (2, 1, C) backward.

    Raises:
        InputError: The ranks disagree on C. Raised on every rank.
    """
    if is_compiling():  # torch's own operator: the compiler keeps collectives in order
        return _functional_collectives.all_reduce(numbers, 'sum', process_group)
    # gloo ends the process when sizes differ, nccl waits for ever. So the ranks compare them before
    # a group's first collectives. The group's calls are counted, which all ranks make, and nothing
    # in a layer: a rank that has loaded or copied its own does the same.
    calls = _CALLS.get(process_group, 0)
    if calls < CHECKED_CALLS:
        _CALLS[process_group] = calls + 1
        _check_same_channels(numbers.numel() // 2, numbers.device, process_group)
    dist.all_reduce(numbers, group=process_group)
    return numbers


def _check_same_channels(channels: int, device: torch.device, process_group: ProcessGroup) -> None:
    mine = torch.tensor([channels], device=device)
    of_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(of_ranks, mine, group=process_group)
    given = [int(c) for c in of_ranks]
    if len(set(given)) > 1:
        raise InputError(
            f'a synchronised layer needs the same num_features on every rank, got {given} on '
            f'ranks {dist.get_process_group_ranks(process_group)}'
        )
