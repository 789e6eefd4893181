"""Time and memory of norm layers on one input, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import accumulate
from math import nan
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

# How often SN goes over an input, at the least; a copy goes over it twice.
SWEEPS = {'forward': 3, 'forward_backward': 8, 'eval': 3}
SECONDS = 0.02
"""Least duration of one timing."""
_IN_A_ROW = 10  # fewer launches than wait in a GPU's queue
_UNCOUNTED = 3  # what is compiled, is compiled by then

# Not by torch.utils.benchmark.Timer or triton.testing.do_bench: they time one function to its end,
# then the next, and ratios of them hold only where the machine stays the same. Timer also knows no
# events of a GPU, and do_bench no CPU.


class Passes:
    """The passes of one layer over one input, each without arguments."""

    def __init__(self, layer: nn.Module, x: Tensor, dy: Tensor) -> None:
        self.trained = deepcopy(layer).eval()
        self.layer = layer.train()
        self.x, self.dy = x, dy
        self.targets = [x, *layer.parameters()]

    def forward(self) -> Tensor:
        return self.layer(self.x)

    def forward_backward(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward(), self.targets, self.dy)

    @torch.no_grad()
    def eval(self) -> Tensor:
        return self.trained(self.x)

    def kept_bytes(self) -> int:
        """Bytes that forward keeps for backward: distinct storages, but for the layer's own."""
        own = {t.untyped_storage().data_ptr() for t in self.layer.state_dict().values()}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            self.forward()
        return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most that a pass holds at a time, beyond the memory in use before it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    return max(accumulate((change for _, change in changes), initial=0))


def time_runs(run: Callable[[], Any], number: int, device: torch.device) -> float:
    """Seconds of ``number`` runs in a row: on a GPU by its own events, elsewhere by a clock."""
    if device.type == 'cuda':
        stream = torch.cuda.current_stream(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        for _ in range(number):
            run()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    began = perf_counter()
    for _ in range(number):
        run()
    return perf_counter() - began


def time_side_by_side(
    passes: Mapping[Any, Callable[[], Any]],
    device: torch.device,
    repeats: int,
    warmup: int = 2,
    least: float = SECONDS,
) -> dict[Any, list[float]]:
    """Seconds of each pass, one a repeat: in each repeat all passes take their turn.

    Args:
        passes: The functions to time, by name.
        device: Where they run.
        repeats: Timings of each.
        warmup: Runs before each timing that do not count.
        least: Seconds that one timing takes at the least, by as many runs in a row.
    """

    def seconds(run: Callable[[], Any], number: int) -> float:
        for _ in range(warmup):
            run()
        return time_runs(run, number, device) / number

    number = {}
    for key, run in passes.items():
        run()  # compiled, memory allocated
        number[key] = max(1, round(least / seconds(run, 1)))
    timings = {key: partial(seconds, run, number[key]) for key, run in passes.items()}
    return take_turns(timings, repeats)


def take_turns(timings: Mapping[Any, Callable[[], float]], repeats: int) -> dict[Any, list[float]]:
    """The results of each of the functions, one a repeat: in each repeat all take their turn."""
    results: dict[Any, list[float]] = {key: [] for key in timings}
    for _ in range(repeats):
        for key, time in timings.items():
            results[key].append(time())
    return results


def host_times(
    passes: Mapping[Any, Callable[[], Any]], device: torch.device, repeats: int
) -> dict[Any, list[float]]:
    """Seconds until the work of each pass is enqueued, with no wait for it.

    On inputs so small that a GPU keeps up. On a CPU this is the whole time of the pass.
    """

    def enqueue(run: Callable[[], Any]) -> float:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        began = perf_counter()
        for _ in range(_IN_A_ROW):
            run()
        return (perf_counter() - began) / _IN_A_ROW

    timings = {key: partial(enqueue, run) for key, run in passes.items()}
    times = take_turns(timings, _UNCOUNTED + repeats)
    return {key: seconds[_UNCOUNTED:] for key, seconds in times.items()}


def measure_steps(
    steps: Mapping[str, Callable[[], Any]],
    base: str,
    device: torch.device,
    repeats: int,
    warmup: int,
    least: float = SECONDS,
) -> dict[str, dict[str, Any]]:
    """Time and memory of training steps, by name.

    Args:
        steps: The steps by name.
        base: The name of the step to whose time the ratios are; they are NaN if it is not there.
        device, repeats, warmup, least: As in :func:`time_side_by_side`.

    Returns:
        The time as {median, q1, q3} in milliseconds, the ratio of medians, and the most memory
        that a step holds beyond what was in use before it, in MiB.
    """
    times = time_side_by_side(steps, device, repeats, warmup, least)
    medians = {name: median(seconds) for name, seconds in times.items()}
    return {
        name: {
            'step': spread(times[name]),
            'ratio': medians[name] / medians.get(base, nan),
            'peak_mib': peak_bytes(step, device) / 2**20,
        }
        for name, step in steps.items()
    }


def measure(
    layers: Mapping[str, nn.Module], x: Tensor, repeats: int, least: float = SECONDS
) -> list[dict[str, Any]]:
    """One record a layer.

    Args:
        layers: The layers by name, 'BatchNorm' among them.
        x: (N, C, H, W).
        repeats, least: As in :func:`time_side_by_side`.

    Returns:
        Times as {median, q1, q3} in milliseconds, and the limit: eight sweeps at the speed of a
        copy. Ratios of medians. Memory in sizes of ``x``. ``copy_share`` is the share of the
        copy's bandwidth that eight sweeps in the time of forward with backward are. ``host`` is
        forward with backward by :func:`host_times` on (2, C, 2, 2) values.
    """
    x = x.detach().requires_grad_()
    dy = torch.randn_like(x)
    source, target = x.detach(), torch.empty_like(x)
    passes = {name: Passes(layer, x, dy) for name, layer in layers.items()}
    runs: dict[Any, Callable[[], Any]] = {
        (name, kind): getattr(p, kind) for name, p in passes.items() for kind in SWEEPS
    }
    runs['copy'] = lambda: target.copy_(source)
    times = time_side_by_side(runs, x.device, repeats, least=least)
    medians = {key: median(seconds) for key, seconds in times.items()}
    limit = medians['copy'] * SWEEPS['forward_backward'] / 2
    group_eval = medians.get(('GroupNorm', 'eval'))
    size = x.numel() * x.element_size()
    records = [
        {
            'layer': name,
            **{kind: spread(times[name, kind]) for kind in SWEEPS},
            'limit': 1e3 * limit,
            'ratio': medians[name, 'forward_backward'] / medians['BatchNorm', 'forward_backward'],
            'eval_to_batch_norm_forward': medians[name, 'eval'] / medians['BatchNorm', 'forward'],
            'eval_to_group_norm': group_eval and medians[name, 'eval'] / group_eval,
            'kept': p.kept_bytes() / size,
            'peak': peak_bytes(p.forward_backward, x.device) / size,
            'copy_share': limit / medians[name, 'forward_backward'],
            'copy_gb_per_s': 2 * size / medians['copy'] / 1e9,
        }
        for name, p in passes.items()
    ]
    # At last, since compiled layers are compiled anew for another size.
    few = torch.randn_like(source[:2, :, :2, :2]).requires_grad_()
    on_few = {
        name: Passes(layer, few, torch.ones_like(few)).forward_backward
        for name, layer in layers.items()
    }
    host = host_times(on_few, x.device, repeats)
    return [{**record, 'host': spread(host[record['layer']])} for record in records]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    if len(seconds) == 1:
        seconds = [*seconds, *seconds]
    q1, middle, q3 = (1e3 * q for q in quantiles(seconds, n=4, method='inclusive'))
    return {'median': middle, 'q1': q1, 'q3': q3}
