"""The bounds that SN is to keep on a GPU, and whether a run of tools/check_gpu.sh held them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sn_mm.benchmark.layers import DTYPES, FORMATS

from .processes import Result

MB = 10**6
HELD, NOT_HELD, NOT_MEASURED = 'held', 'not held', 'not measured'
# Layer pass, its bound: kernels, fills and copies that the host starts.
LAUNCHES = {'forward': 5, 'backward': 6, 'eval': 3}
PASSES = {'forward': 'training forward', 'backward': 'backward', 'eval': 'evaluation'}


class Mark(NamedTuple):
    """One bound.

    Attributes:
        name: The quantity.
        bound: The limit, as text.
        value: The worst value of the run, None where there is none.
        mark: 'held', 'not held' or 'not measured'.
        note: Which case the value is of, or why there is none.
    """

    name: str
    bound: str
    value: float | None
    mark: str
    note: str


def mark_bounds(results: Iterable[Result], on_gpu: bool) -> list[Mark]:
    """All bounds, in a fixed order.

    Args:
        results: Of the steps that ran.
        on_gpu: Whether they ran on a GPU: elsewhere nothing is held to these bounds.
    """
    steps = {result.name: result for result in results}
    return [
        *(_time(steps, dtype, memory, on_gpu) for dtype in DTYPES for memory in FORMATS),
        *(_bandwidth(steps, dtype, memory, on_gpu) for dtype in DTYPES for memory in FORMATS),
        _training(steps, 'training', 'SN, synchronized', 'SyncBatchNorm', on_gpu),
        _training(steps, 'compiled', 'SN', 'BatchNorm', on_gpu),
        *(_launches(steps, kind, on_gpu) for kind in LAUNCHES),
    ]


def _time(steps: Mapping[str, Result], dtype: str, memory: str, on_gpu: bool) -> Mark:
    values = {
        _map(r): r['ratio']
        for r in _layer_records(steps, dtype, memory)
        if r['model'] == 'ResNet' and r['bytes'] >= 16 * MB
    }
    name = f"forward + backward in times of BatchNorm's, ResNet inputs >= 16 MB, {dtype}, {memory}"
    return _mark(name, 1.0, values, steps.get('layers'), on_gpu, 'no such input in this run')


def _bandwidth(steps: Mapping[str, Result], dtype: str, memory: str, on_gpu: bool) -> Mark:
    values = {
        _map(r): r['copy_share']
        for r in _layer_records(steps, dtype, memory)
        if r['bytes'] >= 256 * MB
    }
    name = f"share of a copy's bandwidth, inputs >= 256 MB, {dtype}, {memory}"
    missing = 'no such input in this run'
    return _mark(name, 0.9, values, steps.get('layers'), on_gpu, missing, at_least=True)


def _training(steps: Mapping[str, Result], step: str, ours: str, theirs: str, on_gpu: bool) -> Mark:
    result = steps.get(step)
    times = {r['norm']: r['step']['median'] for r in _records(result) if 'step' in r}
    values = {}
    if ours in times and theirs in times:
        values[''] = times[ours] / times[theirs]
    errors = [f'{r["norm"]}: {r["error"]}' for r in _records(result) if 'error' in r]
    kind = {'training': 'eager', 'compiled': 'compiled'}[step]
    name = f"ResNet-50 training step of {ours}, {kind}, in times of {theirs}'s"
    missing = '; '.join(errors) or f'{ours} or {theirs} was not measured'
    return _mark(name, 1.03, values, result, on_gpu, missing)


def _launches(steps: Mapping[str, Result], kind: str, on_gpu: bool) -> Mark:
    result = steps.get('launches')
    values = {
        f'{r["dtype"]}, {r["format"]}': len(r['started'][kind])
        for r in _records(result)
        if r['layer'] == 'SN'
    }
    name = f'launches of a layer, {PASSES[kind]}'
    return _mark(name, LAUNCHES[kind], values, result, on_gpu, 'no launches were counted')


def _records(result: Result | None) -> list[dict[str, Any]]:
    return result.records if result else []


def _layer_records(steps: Mapping[str, Result], dtype: str, memory: str) -> list[dict[str, Any]]:
    return [
        r
        for r in _records(steps.get('layers'))
        if (r['layer'], r['dtype'], r['format']) == ('SN', dtype, memory)
    ]


def _map(record: Mapping[str, Any]) -> str:
    return 'x'.join(map(str, record['shape']))


def _mark(
    name: str,
    limit: float,
    values: Mapping[str, float],
    result: Result | None,
    on_gpu: bool,
    missing: str,
    at_least: bool = False,
) -> Mark:
    """Marks the worst of ``values``.

    A step that did not come to its end may have left out the worst: its values can only show that
    a bound is not held.

    Args:
        values: By the case that each is of.
        missing: The reason given where the step ended well and there are no values.
        at_least: ``limit`` is the least value allowed, not the largest.
    """
    bound = f'{">=" if at_least else "<="} {limit:g}'

    def unknown(reason: str) -> Mark:
        return Mark(name, bound, None, NOT_MEASURED, reason)

    if not on_gpu:
        return unknown('no GPU is visible')
    if result is None:
        return unknown('the step did not run')
    numbers = {case: value for case, value in values.items() if math.isfinite(value)}
    if numbers:
        case, worst = (min if at_least else max)(numbers.items(), key=lambda item: item[1])
        holds = worst >= limit if at_least else worst <= limit
        if not holds:
            return Mark(name, bound, worst, NOT_HELD, case)
        if result.status == 'done' and len(numbers) == len(values):
            return Mark(name, bound, worst, HELD, case)
    return unknown(result.reason or missing)
