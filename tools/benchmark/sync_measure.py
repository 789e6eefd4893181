"""The collectives of synchronised norms among real gloo processes on this machine, timed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .sync_model import SCHEMES, Collective, ring

_DTYPES = {4: torch.float32, 8: torch.float64}
_SMALL, _LARGE = 64, 2**21
"""Numbers of the all_reduces that give alpha and the bandwidth: 256 bytes and 8 MB."""


def measure(
    channels: Sequence[int], ranks: int, repeats: int, limit: float = 300
) -> dict[str, Any]:
    """Starts ``ranks`` processes and times the collectives of a training step of each scheme.

    The schemes take turns. Also timed are as many all_reduces of 64 numbers and one of 8 MB, which
    by the model of a ring give this machine's alpha and bandwidth, and so the model's times.

    Args:
        channels: Of the norms.
        ranks: Number of processes.
        repeats: Training steps of each scheme.
        limit: Seconds after which the processes are stopped.

    Returns:
        ``ranks``, ``alpha``, ``bandwidth``, and by scheme ``forward_bytes`` and ``backward_bytes``
        of the tensors that held the results, medians of ``forward_seconds`` and
        ``backward_seconds``, and ``model_seconds``, the model's for both.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context('spawn')
        arguments = folder, ranks, list(channels), repeats
        processes = [
            context.Process(target=_rank, args=(rank, *arguments), daemon=True)
            for rank in range(ranks)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(limit)
                if process.exitcode != 0:
                    how = 'hangs' if process.exitcode is None else f'ended: {process.exitcode}'
                    raise RuntimeError(f'a rank of the measurement {how}')
        finally:
            for process in processes:
                process.kill()
        record = json.loads(Path(folder, 'times.json').read_text())
    _compare_with_model(record, channels)
    return record


def _compare_with_model(record: dict[str, Any], channels: Sequence[int]) -> None:
    ranks = record['ranks']
    large = ring(Collective('all_reduce', _LARGE, 4), ranks)
    small_seconds = record['small_seconds'] / len(channels)
    alpha = small_seconds / large.rounds
    rest = record['large_seconds'] - small_seconds
    bandwidth = large.bytes / rest if rest > 0 else float('inf')
    record |= {'alpha': alpha, 'bandwidth': bandwidth}
    for scheme, collectives in SCHEMES.items():
        costs = [ring(collective, ranks) for c in channels for collective in collectives(c)]
        record[scheme]['model_seconds'] = sum(c.seconds(alpha, bandwidth) for c in costs)


def _rank(rank: int, folder: str, ranks: int, channels: list[int], repeats: int) -> None:
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    limit = timedelta(seconds=120)
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=ranks, timeout=limit)
    runs: dict[tuple[str, str], Callable[[], Any]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for scheme, collectives in SCHEMES.items():
        passes = [collectives(c) for c in channels]
        for place, name in enumerate(('forward', 'backward')):
            calls = [_prepare(layer[place], ranks) for layer in passes]
            runs[scheme, name] = lambda calls=calls: [call() for call, _ in calls]
            sizes[scheme, name] = sum(size for _, size in calls)
    small, _ = _prepare(Collective('all_reduce', _SMALL, 4), ranks)
    runs['small', ''] = lambda: [small() for _ in channels]
    runs['large', ''], _ = _prepare(Collective('all_reduce', _LARGE, 4), ranks)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(1 + repeats):  # the first connects the processes
        for key, run in runs.items():
            dist.barrier()
            began = perf_counter()
            run()
            times[key].append(perf_counter() - began)
    if rank == 0:
        seconds = {key: median(values[1:]) for key, values in times.items()}
        record: dict[str, Any] = {
            'ranks': ranks,
            'small_seconds': seconds['small', ''],
            'large_seconds': seconds['large', ''],
        }
        for scheme in SCHEMES:
            record[scheme] = {
                f'{name}_{unit}': values[scheme, name]
                for name in ('forward', 'backward')
                for unit, values in (('bytes', sizes), ('seconds', seconds))
            }
        Path(folder, 'times.json').write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def _prepare(collective: Collective, ranks: int) -> tuple[Callable[[], None], int]:
    """A collective ready to call, and the bytes of the tensors that hold its result."""
    mine = torch.zeros(collective.numbers, dtype=_DTYPES[collective.size])
    if collective.kind == 'all_reduce':
        return lambda: dist.all_reduce(mine), mine.nbytes
    result = [torch.empty_like(mine) for _ in range(ranks)]
    return lambda: dist.all_gather(result, mine), sum(part.nbytes for part in result)
