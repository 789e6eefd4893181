"""The collectives of synchronized norms among real gloo processes on this machine, timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from ranks import ranks_of

from .model import SCHEMES, Collective, ring

_DTYPES = {4: torch.float32, 8: torch.float64}
_SMALL, _LARGE = 64, 2**21
"""Numbers of the all_reduces that give alpha and the bandwidth: 256 bytes and 8 MB."""


def measure(channels: Sequence[int], ranks: int, repeats: int) -> dict[str, Any]:
    """Times the collectives of a training step of each scheme among ``ranks`` processes.

    The schemes take turns. Also timed are as many all_reduces of 64 numbers and one of 8 MB, which
    by the model of a ring give this machine's alpha and bandwidth, and so the model's times.

    Args:
        channels: Of the norms.
        ranks: Number of processes.
        repeats: Training steps of each scheme.

    Returns:
        ``alpha``, ``bandwidth``, and by scheme ``forward_bytes`` and ``backward_bytes`` of the
        tensors that held the results, medians of ``forward_seconds`` and ``backward_seconds``, and
        ``model_seconds``, the model's for both.
    """
    sizes, seconds = ranks_of(ranks).run(_on_rank, channels, repeats, limit=300)[0]
    large = ring(Collective('all_reduce', _LARGE, 4), ranks)
    small_seconds = seconds['small', ''] / len(channels)
    alpha = small_seconds / large.rounds
    rest = seconds['large', ''] - small_seconds
    bandwidth = large.bytes / rest if rest > 0 else float('inf')
    record: dict[str, Any] = {'alpha': alpha, 'bandwidth': bandwidth}
    for scheme, collectives in SCHEMES.items():
        costs = [ring(collective, ranks) for c in channels for collective in collectives(c)]
        record[scheme] = {'model_seconds': sum(c.seconds(alpha, bandwidth) for c in costs)}
        for name in ('forward', 'backward'):
            record[scheme][f'{name}_bytes'] = sizes[scheme, name]
            record[scheme][f'{name}_seconds'] = seconds[scheme, name]
    return record


def _on_rank(rank: int, channels: Sequence[int], repeats: int) -> tuple[dict, dict]:
    """Bytes of the results and median seconds, by scheme and pass."""
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for scheme, collectives in SCHEMES.items():
        passes = [collectives(c) for c in channels]
        for place, name in enumerate(('forward', 'backward')):
            calls = [_prepare(layer[place]) for layer in passes]
            runs[scheme, name] = lambda calls=calls: [call() for call, _ in calls]
            sizes[scheme, name] = sum(size for _, size in calls)
    small, _ = _prepare(Collective('all_reduce', _SMALL, 4))
    runs['small', ''] = lambda: [small() for _ in channels]
    runs['large', ''], _ = _prepare(Collective('all_reduce', _LARGE, 4))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(1 + repeats):  # the first connects the processes
        for key, run in runs.items():
            dist.barrier()
            began = perf_counter()
            run()
            times[key].append(perf_counter() - began)
    return sizes, {key: median(values[1:]) for key, values in times.items()}


def _prepare(collective: Collective) -> tuple[Callable[[], None], int]:
    """A collective ready to call, and the bytes of the tensors that hold its result."""
    mine = torch.zeros(collective.numbers, dtype=_DTYPES[collective.size])
    if collective.kind == 'all_reduce':
        return lambda: dist.all_reduce(mine), mine.nbytes
    result = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    return lambda: dist.all_gather(result, mine), sum(part.nbytes for part in result)
