"""Process groups of synchronized layers, their collectives, and the layers that call these."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ._compat import constant_in_graphs, is_compiling
from .errors import InputError

# The layers' own groups by size, for as long as the default group that they are parts of.
_GROUPS: WeakKeyDictionary[ProcessGroup, dict[int, ProcessGroup]] = WeakKeyDictionary()
# How many of a group's next collectives its ranks check.
_CHECKS: WeakKeyDictionary[ProcessGroup, int] = WeakKeyDictionary()

CHECKED_CALLS = 512
"""The collectives of a group on accelerators before which the ranks compare who calls."""

_ALWAYS = 2**62
# On the CPU a collective's time is that of waking up processes. So between few of them the
# statistics travel with the caller, as far as there is room: 2052 float64, 1025 channels.
_CALLER_WORDS, _STATISTICS_WORDS = 4, 2052
_FEW_RANKS = 8
_DIRECTIONS = ('forward', 'backward')


class Caller(NamedTuple):
    """The layer that calls a collective.

    All but its name and the shape is as the layer was made with: a rank that has copied, loaded or
    unpickled its layer compares as equal to one that has not.

    Attributes:
        name: Its name in the model (:func:`sn_mm.name_layers`), '' where it was given none.
        shape: Of its input, for errors; ranks may differ in it.
        channels: Its ``num_features``.
        normalizers, eps, correction: As the layer's.
    """

    name: str
    shape: tuple[int, ...]
    channels: int
    normalizers: tuple[str, ...]
    eps: float
    correction: int

    def __str__(self) -> str:
        if self.name:
            return f'{self.name} (num_features={self.channels})'
        return (
            f'a layer without a name (num_features={self.channels}, '
            f'normalizers={list(self.normalizers)}, eps={self.eps}, input of shape {self.shape})'
        )


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
        InputError: The number of ranks is not a multiple of k, or k comes with a ``process_group``.
    """
    if process_group is not None and not isinstance(sync, bool):
        raise InputError(f'process_group needs sync=True, got sync={sync}')
    if sync is False or not dist.is_available() or not dist.is_initialized():
        return None
    ranks = dist.get_world_size(process_group)
    if ranks < 2 or process_group is not None:
        return process_group if ranks > 1 else None
    size = ranks if sync is True else sync
    return _consecutive_ranks(size, dist.group.WORLD) if size > 1 else None


@constant_in_graphs
def constant_group(
    sync: bool | int, process_group: ProcessGroup | None = None
) -> ProcessGroup | None:
    """:func:`resolve_group` while a model is traced: groups exist before it is compiled.

    A rank may later fall back to running the layer as it is, alone: so a group's checks, which
    compiled layers do not make, end here on all ranks.
    """
    group = resolve_group(sync, process_group)
    if group is not None:
        _CHECKS[group] = 0
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


def sum_over_ranks(
    numbers: Tensor, process_group: ProcessGroup, caller: Caller | None, direction: str
) -> Tensor:
    """The sum of ``numbers`` over the ranks of the group, all of which must call this.

    Where no model is compiled ``numbers`` itself is changed.

    Args:
        numbers: (2C + 1,) forward, (2, 1, C) backward.
        caller: The layer; None where a model is compiled.
        direction: 'forward' or 'backward'.

    Raises:
        InputError: The ranks call for different layers or directions. Raised on every rank.
        RuntimeError: The collective failed, for instance because a rank did not come in time. gloo
            raises it; nccl does with ``TORCH_NCCL_BLOCKING_WAIT=1``, and else ends the process.
    """
    if is_compiling():  # torch's own operator: the compiler keeps collectives in order
        from torch.distributed import _functional_collectives

        return _functional_collectives.all_reduce(numbers, 'sum', process_group)
    try:
        rest = numbers.view(-1)
        if caller is not None and _compares_callers(process_group):
            rest = _sum_with_same_caller(caller, direction, rest, process_group)
        if rest.numel():
            dist.all_reduce(rest, group=process_group)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if 'CUDA error' in str(error):  # of an earlier kernel, an assertion in a loss for one
            raise
        ranks = dist.get_process_group_ranks(process_group)
        cause = ' '.join(str(error).split())
        raise RuntimeError(
            f'{caller or "an SN layer"} waited {direction} for the ranks {ranks} on rank '
            f'{dist.get_rank()}, in vain: {cause}. A rank may have ended, be too slow '
            'for the timeout of the process group, or have gone another way through the model'
        ) from error
    return numbers


def _compares_callers(process_group: ProcessGroup) -> bool:
    """Whether the ranks compare who calls before the group's next collective.

    ``SN_MM_CHECK_SYNC=0`` ends all comparisons. It must be in the environment of every rank: a rank
    without it would wait for the others' all_gather.
    """
    return os.environ.get('SN_MM_CHECK_SYNC') != '0' and _CHECKS.get(process_group, 1) > 0


def _sum_with_same_caller(
    caller: Caller, direction: str, numbers: Tensor, process_group: ProcessGroup
) -> Tensor:
    """Compares the ranks' callers, in an all_gather that comes before a collective.

    Without it ranks that meet in different layers end their process (gloo, if sizes differ), wait
    for ever (nccl), or add up statistics of two layers (if sizes do not differ).

    On the CPU it comes before every collective. On an accelerator, which has to wait for it, it
    comes before a group's first ones only. All ranks must agree on which these are. So they are
    counted for the group, whose collectives all ranks call, and not in a layer, which one rank may
    have loaded or copied; and each comparison settles on the largest number that a rank wants.

    Returns:
        The part of ``numbers`` that is still to be summed. The part before it has travelled with
        the caller: between few ranks on the CPU, and there all of it but in very wide layers.
    """
    device, ranks = numbers.device, dist.get_world_size(process_group)
    further = (
        _ALWAYS if _wants_all_checks(device) else _CHECKS.get(process_group, CHECKED_CALLS) - 1
    )
    name = _digest(caller.name) if caller.name else 0
    settings = _digest((*caller[2:], numbers.dtype))
    mine = torch.tensor([settings, _DIRECTIONS.index(direction), name, further], device=device)
    carries = device.type == 'cpu' and ranks <= _FEW_RANKS
    if carries:
        # Of one size for all layers, since this is where a difference between them shows.
        mine = torch.cat([mine, mine.new_zeros(_STATISTICS_WORDS)])
        room = mine[_CALLER_WORDS:].view(numbers.dtype)
        carried = numbers[: len(room)]
        room[: len(carried)] = carried
    of_ranks = mine.new_empty(ranks, len(mine))
    dist.all_gather(list(of_ranks), mine, group=process_group)
    all_settings, directions, names, wanted = zip(*of_ranks[:, :_CALLER_WORDS].tolist())
    _CHECKS[process_group] = max(wanted)
    # A layer that one rank made anew, or loaded whole, may have no name there.
    if len(set(all_settings)) > 1 or len(set(directions)) > 1 or len({*names} - {0}) > 1:
        given: list[Any] = [None] * ranks
        call = f'{caller} {direction} ({str(numbers.dtype)[6:]})'
        dist.all_gather_object(given, call, group=process_group)
        raise InputError(_disagreement(given, dist.get_process_group_ranks(process_group)))
    if not carries:
        return numbers
    rooms = of_ranks[:, _CALLER_WORDS:].view(numbers.dtype)
    torch.sum(rooms[:, : len(carried)], 0, out=carried)
    return numbers[len(carried) :]


def _wants_all_checks(device: torch.device) -> bool:
    return device.type == 'cpu' or os.environ.get('SN_MM_CHECK_SYNC') == '1'


def _disagreement(given: Sequence[str], ranks: Sequence[int]) -> str:
    by_caller: dict[str, list[str]] = {}
    for rank, caller in zip(ranks, given):
        by_caller.setdefault(caller, []).append(str(rank))
    parts = (
        f'{"rank" if len(numbers) == 1 else "ranks"} {", ".join(numbers)}: {caller}'
        for caller, numbers in by_caller.items()
    )
    return (
        'all ranks must call the same synchronized layers in the same order, got '
        f'{"; ".join(parts)}. A layer that a rank may skip takes sync=False'
    )


@lru_cache(maxsize=4096)
def _digest(what: object) -> int:
    """A number for what has a repr, the same in every process, never 0."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=7).digest(), 'big') + 1
