"""What the records of a comparison's runs say: groups of runs, verdicts, costs, importance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from .plan import learns

# The metric by which norms are compared, by toolbox.
METRICS = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}
_NAMES = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU'}


class Group:
    """The runs of one norm and batch, which differ in the seed.

    Args:
        records: Their records.
        metric: A key of their metrics.
        test: ``'metrics'``, or ``'batch_average'`` for the test with the batch average.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], metric: str, test: str) -> None:
        self.values = [value_of(r, metric, test) for r in records if 'error' not in r and test in r]
        self.errors = sorted({r['error'] for r in records if 'error' in r})
        self.diverged = sum('loss' in r and r['loss'] is None for r in records if 'error' not in r)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values) if self.values else math.nan


def value_of(record: Mapping[str, Any], metric: str, test: str = 'metrics') -> float:
    """A figure of a test.

    mmdet reports no figure at all where a model finds nothing; this is an AP of 0.

    Raises:
        InputError: The test has other figures, and not this one.
    """
    metrics = record[test]
    if not metrics:
        return 0.0
    if metric not in metrics:
        raise InputError(f'--metric must be one of {", ".join(metrics)}, got {metric!r}')
    return float(metrics[metric])


def group(
    records: Sequence[Mapping[str, Any]], metric: str, test: str = 'metrics'
) -> dict[tuple[str, int], Group]:
    """The groups of a comparison, by norm and images per process."""
    keys = dict.fromkeys((r['norm'], r['images']) for r in records)
    return {
        key: Group([r for r in records if (r['norm'], r['images']) == key], metric, test)
        for key in keys
    }


def best_apart(groups: Mapping[str, Group]) -> str | None:
    """The norm whose worst seed is better than the best seed of every other; None if there is none.

    One seed shows no range, so that nothing can be told apart; nor can norms with other seeds.
    """
    measured = {norm: g for norm, g in groups.items() if g.values}
    seeds = {len(g.values) for g in measured.values()}
    if len(measured) < 2 or len(seeds) > 1 or seeds == {1}:
        return None
    best = max(measured, key=lambda norm: measured[norm].mean)
    others = (max(g.values) for norm, g in measured.items() if norm != best)
    return best if min(measured[best].values) > max(others) else None


def verdict(groups: Mapping[tuple[str, int], Group], processes: int, metric: str) -> list[str]:
    """Whether SN pays: compares the best norm that is SN with the best that is not, by batch.

    For a comparison whose runs are all done. It is decided where one is apart from all norms of
    the other kind, as by :func:`best_apart`.

    Returns:
        A sentence for each batch, if the comparison has norms of both kinds.
    """
    name, digits = metric_name(metric), digits_of(metric)
    norms = dict.fromkeys(norm for norm, _ in groups)
    if len({learns(norm) for norm in norms}) < 2:
        return []
    sentences = []
    for count in sorted({count for _, count in groups}):
        ran = {norm: g for (norm, n), g in groups.items() if n == count and g.values}
        kinds = [[norm for norm in ran if learns(norm) is kind] for kind in (True, False)]
        if not all(kinds):
            failed = [f'`{norm}`' for norm in norms if learns(norm) is not bool(kinds[0])]
            sentences.append(
                f'{processes} x {count}: nothing to compare with, for {", ".join(failed)} did not '
                'run'
            )
            continue
        sn, other = (max(kind, key=lambda norm: ran[norm].mean) for kind in kinds)
        best, rivals = (sn, kinds[1]) if ran[sn].mean > ran[other].mean else (other, kinds[0])
        if best_apart({norm: ran[norm] for norm in (best, *rivals)}) is None:
            decision = 'not decided by these seeds'
        else:
            decision = 'SN pays' if best == sn else 'SN does not pay'
        sentences.append(
            f'{processes} x {count}: {decision}: {name} {ran[sn].mean:.{digits}f} with '
            f'`{sn}`, {ran[other].mean:.{digits}f} with `{other}`, the best without'
        )
    return sentences


def metric_name(metric: str) -> str:
    """A metric as people call it, such as ``'box AP'``."""
    return _NAMES.get(metric, metric)


def digits_of(metric: str) -> int:
    """Digits behind the point that a metric is written with."""
    return 1 if metric == 'mIoU' else 3


def costs(
    records: Sequence[Mapping[str, Any]], norm: str, images: int
) -> tuple[float, float] | None:
    """Seconds per iteration and MiB of one norm and batch; None if no run of it succeeded."""
    ran = [
        r
        for r in records
        if (r['norm'], r['images']) == (norm, images)
        and 'error' not in r
        and r.get('seconds_per_iteration') is not None
    ]
    if not ran:
        return None
    return (
        statistics.median(r['seconds_per_iteration'] for r in ran),
        statistics.median(r['peak_memory_mib'] for r in ran),
    )


def importance_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Importance averaged over the seeds, by norm and images; norms without SN are left out."""
    found: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for record in records:
        if record.get('importance'):
            by_images = found.setdefault(record['norm'], {})
            by_images.setdefault(record['images'], []).append(record['importance'])
    return {
        norm: {
            images: {
                statistic: {
                    scope: statistics.mean(run[statistic][scope] for run in runs)
                    for scope in runs[0][statistic]
                }
                for statistic in runs[0]
            }
            for images, runs in sorted(by_images.items())
        }
        for norm, by_images in found.items()
    }
