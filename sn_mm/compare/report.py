"""The report of a comparison, from the records of its cells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..cli.files import atomic_path
from ..errors import InputError
from . import figures
from .plan import is_mix

# The figure that stands for a test, by toolbox.
METRICS = {'mmdet': 'coco/bbox_mAP', 'mmseg': 'mIoU'}
_NAMES = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU'}


class Group:
    """The cells of one norm and batch, which differ in the seed.

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
    """Whether SN pays: for each batch the best norm that is SN beside the best that is not.

    For a comparison whose cells are all done. It is decided where one is apart from all norms of
    the other kind, as by :func:`best_apart`.

    Returns:
        A sentence for each batch, if the comparison has norms of both kinds.
    """
    name, digits = metric_name(metric), _digits(metric)
    norms = dict.fromkeys(norm for norm, _ in groups)
    if len({is_mix(norm) for norm in norms}) < 2:
        return []
    sentences = []
    for count in sorted({count for _, count in groups}):
        ran = {norm: g for (norm, n), g in groups.items() if n == count and g.values}
        kinds = [[norm for norm in ran if is_mix(norm) is kind] for kind in (True, False)]
        if not all(kinds):
            failed = [f'`{norm}`' for norm in norms if is_mix(norm) is not bool(kinds[0])]
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


def _digits(metric: str) -> int:
    return 1 if metric == 'mIoU' else 3


def metric_table(
    groups: Mapping[tuple[str, int], Group], processes: int, metric: str
) -> tuple[list[str], list[str]]:
    """The lines of the table, mean and range over the seeds, and of the notes below it."""
    norms = list(dict.fromkeys(norm for norm, _ in groups))
    images = sorted({count for _, count in groups})
    seeds = max(len(found.values) for found in groups.values())
    lines = [
        f'| {metric_name(metric)} | '
        + ' | '.join(f'{processes} x {count}' for count in images)
        + ' |',
        '|---' * (len(images) + 1) + '|',
    ]
    best = {
        count: best_apart({n: groups[n, count] for n in norms if (n, count) in groups})
        for count in images
    }
    notes: dict[str, int] = {}
    for norm in norms:
        row = []
        for count in images:
            found = groups.get((norm, count))
            text = _entry(found, metric, seeds) if found else ''
            if best[count] == norm:
                text = f'**{text}**'
            for reason in found.errors if found else []:
                number = notes.setdefault(reason, len(notes) + 1)
                text = f'{text} [{number}]'.strip()
            row.append(text)
        lines.append(f'| `{norm}` | ' + ' | '.join(row) + ' |')
    return lines, [f'[{number}] does not run: {reason}' for reason, number in notes.items()]


def _entry(found: Group, metric: str, seeds: int) -> str:
    if not found.values:
        return '-'
    digits = _digits(metric)
    text = f'{found.mean:.{digits}f}'
    if len(found.values) > 1:
        text += f' ({min(found.values):.{digits}f} to {max(found.values):.{digits}f})'
    if len(found.values) < seeds:
        text += f', {len(found.values)} of {seeds} seeds'
    return f'{text}, {found.diverged} diverged' if found.diverged else text


def cost_table(records: Sequence[Mapping[str, Any]], processes: int) -> list[str]:
    """Seconds per iteration and peak memory of a process, medians over the seeds."""
    keys = dict.fromkeys((r['norm'], r['images']) for r in records)
    images = sorted({count for _, count in keys})
    lines = [
        '| s/iteration, MiB | ' + ' | '.join(f'{processes} x {n}' for n in images) + ' |',
        '|---' * (len(images) + 1) + '|',
    ]
    for norm in dict.fromkeys(norm for norm, _ in keys):
        row = []
        for count in images:
            cost = costs(records, norm, count)
            row.append(f'{cost[0]:.3f}, {cost[1]:.0f}' if cost else '-')
        lines.append(f'| `{norm}` | ' + ' | '.join(row) + ' |')
    return lines


def costs(
    records: Sequence[Mapping[str, Any]], norm: str, images: int
) -> tuple[float, float] | None:
    """Seconds per iteration and MiB of one norm and batch; None if no cell of it ran."""
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
                    scope: statistics.mean(w[statistic][scope] for w in weights)
                    for scope in weights[0][statistic]
                }
                for statistic in weights[0]
            }
            for images, weights in sorted(by_images.items())
        }
        for norm, by_images in found.items()
    }


def importance_table(weights: Mapping[str, Mapping[int, Any]], processes: int) -> list[str]:
    lines = [
        '| importance | batch | mean: in, ln, bn | variance: in, ln, bn |',
        '|---|---|---|---|',
    ]
    for norm, by_images in weights.items():
        for images, found in by_images.items():
            row = [
                ', '.join(
                    f'{found[s][scope]:.3f}' if scope in found[s] else '-'
                    for scope in ('in', 'ln', 'bn')
                )
                for s in ('mean', 'var')
            ]
            lines.append(f'| `{norm}` | {processes} x {images} | {row[0]} | {row[1]} |')
    return lines


def write_report(
    out: Path, header: Mapping[str, Any], records: Sequence[Mapping[str, Any]], metric: str
) -> None:
    """Writes README.md and its figures.

    Args:
        out: Folder of the comparison.
        header: ``config``, ``command``, ``machine``, ``processes``, ``base_batch``, ``base_from``,
            ``notes``, ``memory``, and ``cells``, their number in all.
        records: Of the cells that are done.
        metric: The figure to compare.

    Raises:
        InputError: As :func:`value_of`.
    """
    processes = header['processes']
    groups = group(records, metric)
    table, notes = metric_table(groups, processes, metric)
    norms = list(dict.fromkeys(norm for norm, _ in groups))
    seeds = len({r['seed'] for r in records})
    lines = [
        f'# Norms compared: {header["config"]}',
        '',
        *(
            [f'- {sentence}.' for sentence in verdict(groups, processes, metric)]
            if len(records) == header['cells']
            else [f'{len(records)} of {header["cells"]} cells are done.']
        ),
        '',
        'One seed: differences between norms may be chance.'
        if seeds == 1
        else f'Mean over {seeds} seeds, with the smallest and the largest value. Bold: better with '
        'every seed than every other norm with any.',
        '',
        *table,
        '',
        *[f'{note}  ' for note in notes],
        *(['`--retry-failed` runs these cells again.'] if notes else []),
    ]
    drawn = {'metric': figures.draw_metric({'': (groups, metric_name(metric))}, processes)}
    lines += ['', '![by images per process](metric.png)', '']
    if any('batch_average' in r for r in records):
        averaged = {
            key: g for key, g in group(records, metric, 'batch_average').items() if g.values
        }
        table, _ = metric_table(averaged, processes, metric)
        lines += ['With the batch average in place of the moving average:', '', *table, '']
        lines += [
            f'{r["name"]} has none: {r["batch_average_error"]}  '
            for r in records
            if 'batch_average_error' in r
        ]
    lines += ['## How the cells were made equal', '', *_settings(header, records), '']
    weights = importance_of(records)
    if weights:
        lines += ['## Importance weights', '', 'Averaged over all layers and seeds.', '']
        lines += [*importance_table(weights, processes), '', '![importance](importance.png)', '']
        drawn['importance'] = figures.draw_importance(weights, processes)
    lines += ['## Time and memory', '', header['memory'], '', *cost_table(records, processes), '']
    found = {(n, i): cost for n, i in groups if (cost := costs(records, n, i))}
    if found:
        lines += ['![time and memory](cost.png)', '']
        drawn['cost'] = figures.draw_cost(found, norms, processes)
    iterations = {r['batch_average_iters'] for r in records if 'batch_average' in r}
    averaging = [
        'sn-mm batch-average cells/NAME/config.py CHECKPOINT AVERAGED --bn --num-iters '
        f'{count} --processes {processes}  # and the test again'
        for count in iterations
    ]
    lines += ['## Commands', '', '```shell', header['command'], '```', '']
    lines += [
        'It runs these commands for each cell, whose folder has the complete config and the logs:',
        '',
        '```shell',
        f'sn-mm train cells/NAME/config.py --work-dir cells/NAME/train --processes {processes}',
        f'sn-mm test cells/NAME/config.py CHECKPOINT --processes {processes}',
        *averaging,
        '```',
        '',
        header['machine'],
    ]
    for stem, figure in drawn.items():
        save_figure(figure, out / stem)
    with atomic_path(out / 'README.md') as path:
        path.write_text('\n'.join(lines) + '\n')


def save_figure(figure: Figure, stem: Path) -> None:
    """Writes STEM.png and STEM.svg, the same file for the same figure."""
    for suffix, metadata in (('.png', {}), ('.svg', {'Date': None})):
        path = stem.with_name(f'{stem.name}{suffix}')
        with atomic_path(path) as file, rc_context({'svg.hashsalt': stem.name}):
            figure.savefig(file, dpi=150, metadata=metadata)


def _settings(header: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between batches, and what a norm stands for."""
    lines = [
        'Each cell of a column has the same config but for its norms. The learning rate is scaled '
        f'linearly with the batch, from that for {header["base_batch"]} images '
        f'({header["base_from"]}); the length and the schedules, where they count iterations, are '
        'scaled the other way, so that all cells see the same number of images, but for rounding. '
        'Hooks that count iterations stay as they are.',
        '',
        '| batch | learning rate | length | images |',
        '|---|---|---|---|',
    ]
    for record in sorted(
        {r['images']: r for r in records if 'lr' in r}.values(), key=lambda r: r['images']
    ):
        iterations, epochs = record['max_iters'], record['max_epochs']
        batch = record['processes'] * record['images']
        length = f'{iterations} iterations' if iterations else f'{epochs} epochs'
        images = str(iterations * batch) if iterations else f'{epochs} times the data set'
        lines.append(
            f'| {record["processes"]} x {record["images"]} | {record["lr"]:g} '
            f'({record["optimizer"]}) | {length} | {images} |'
        )
    return lines + ['', *[f'- {note}' for note in header['notes']]]
