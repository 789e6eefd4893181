"""The report of a comparison, from the records of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import atomic_path
from ..output.figures import save_figure
from ..output.markdown import markdown_table
from . import figures
from .results import (
    Group,
    best_apart,
    costs,
    digits_of,
    group,
    importance_of,
    metric_name,
    verdict,
)


def metric_table(
    groups: Mapping[tuple[str, int], Group], processes: int, metric: str
) -> tuple[str, list[str]]:
    """The table, mean and range over the seeds, and the lines of the notes below it."""
    norms = list(dict.fromkeys(norm for norm, _ in groups))
    images = sorted({count for _, count in groups})
    seeds = max(len(found.values) for found in groups.values())
    rows = []
    best = {
        count: best_apart({n: groups[n, count] for n in norms if (n, count) in groups})
        for count in images
    }
    notes: dict[str, int] = {}
    for norm in norms:
        row = [f'`{norm}`']
        for count in images:
            found = groups.get((norm, count))
            text = _entry(found, metric, seeds) if found else ''
            if best[count] == norm:
                text = f'**{text}**'
            for reason in found.errors if found else []:
                number = notes.setdefault(reason, len(notes) + 1)
                text = f'{text} [{number}]'.strip()
            row.append(text)
        rows.append(row)
    table = markdown_table([metric_name(metric), *_batches(images, processes)], rows)
    return table, [f'[{number}] does not run: {reason}' for reason, number in notes.items()]


def _batches(images: Sequence[int], processes: int) -> list[str]:
    return [f'{processes} x {count}' for count in images]


def _entry(found: Group, metric: str, seeds: int) -> str:
    if not found.values:
        return '-'
    digits = digits_of(metric)
    text = f'{found.mean:.{digits}f}'
    if len(found.values) > 1:
        text += f' ({min(found.values):.{digits}f} to {max(found.values):.{digits}f})'
    if len(found.values) < seeds:
        text += f', {len(found.values)} of {seeds} seeds'
    return f'{text}, {found.diverged} diverged' if found.diverged else text


def cost_table(records: Sequence[Mapping[str, Any]], processes: int) -> str:
    """Seconds per iteration and peak memory of a process, medians over the seeds."""
    keys = dict.fromkeys((r['norm'], r['images']) for r in records)
    images = sorted({count for _, count in keys})
    rows = []
    for norm in dict.fromkeys(norm for norm, _ in keys):
        row = [f'`{norm}`']
        for count in images:
            cost = costs(records, norm, count)
            row.append(f'{cost[0]:.3f}, {cost[1]:.0f}' if cost else '-')
        rows.append(row)
    return markdown_table(['s/iteration, MiB', *_batches(images, processes)], rows)


def importance_table(importance: Mapping[str, Mapping[int, Any]], processes: int) -> str:
    """The importance of the scopes for the mean and for the variance, by norm and batch."""
    rows = []
    for norm, by_images in importance.items():
        for images, found in by_images.items():
            row = [
                ', '.join(
                    f'{found[s][scope]:.3f}' if scope in found[s] else '-'
                    for scope in ('in', 'ln', 'bn')
                )
                for s in ('mean', 'var')
            ]
            rows.append([f'`{norm}`', f'{processes} x {images}', *row])
    head = ['importance', 'batch', 'mean: in, ln, bn', 'variance: in, ln, bn']
    return markdown_table(head, rows)


def write_report(
    out: Path, header: Mapping[str, Any], records: Sequence[Mapping[str, Any]], metric: str
) -> None:
    """Writes README.md and its figures.

    Args:
        out: Folder of the comparison.
        header: ``config``, ``command``, ``machine``, ``processes``, ``base_batch``, ``base_from``,
            ``notes``, ``memory``, and ``runs``, their number in all.
        records: Of the runs that are done.
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
            if len(records) == header['runs']
            else [f'{len(records)} of {header["runs"]} runs are done.']
        ),
        '',
        'One seed: differences between norms may be chance.'
        if seeds == 1
        else f'Mean over {seeds} seeds, with the smallest and the largest value. Bold: better with '
        'every seed than every other norm with any.',
        '',
        table,
        '',
        *[f'{note}  ' for note in notes],
        *(['`--retry-failed` repeats these runs.'] if notes else []),
    ]
    drawn = {'metric': figures.draw_metric({'': (groups, metric_name(metric))}, processes)}
    lines += ['', '![by images per process](metric.png)', '']
    if any('batch_average' in r for r in records):
        averaged = {
            key: g for key, g in group(records, metric, 'batch_average').items() if g.values
        }
        table, _ = metric_table(averaged, processes, metric)
        lines += ['With the batch average in place of the moving average:', '', table, '']
        lines += [
            f'{r["name"]} has none: {r["batch_average_error"]}  '
            for r in records
            if 'batch_average_error' in r
        ]
    lines += ['## How the runs were made equal', '', *_settings(header, records), '']
    importance = importance_of(records)
    if importance:
        lines += ['## Importance', '', 'Averaged over all layers and seeds.', '']
        lines += [importance_table(importance, processes), '', '![importance](importance.png)', '']
        drawn['importance'] = figures.draw_importance(importance, processes)
    lines += ['## Time and memory', '', header['memory'], '', cost_table(records, processes), '']
    found = {(n, i): cost for n, i in groups if (cost := costs(records, n, i))}
    if found:
        lines += ['![time and memory](cost.png)', '']
        drawn['cost'] = figures.draw_cost(found, norms, processes)
    iterations = {r['batch_average_iters'] for r in records if 'batch_average' in r}
    averaging = [
        'sn-mm batch-average runs/NAME/config.py CHECKPOINT AVERAGED --bn --num-iters '
        f'{count} --processes {processes}  # and the test again'
        for count in iterations
    ]
    lines += ['## Commands', '', '```shell', header['command'], '```', '']
    lines += [
        'It runs these commands for each run, whose folder has the complete config and the logs:',
        '',
        '```shell',
        f'sn-mm train runs/NAME/config.py --work-dir runs/NAME/train --processes {processes}',
        f'sn-mm test runs/NAME/config.py CHECKPOINT --processes {processes}',
        *averaging,
        '```',
        '',
        header['machine'],
    ]
    for stem, figure in drawn.items():
        save_figure(figure, out / stem)
    with atomic_path(out / 'README.md') as path:
        path.write_text('\n'.join(lines) + '\n')


def _settings(header: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between batches, and what a norm stands for."""
    lines = [
        'Each run of a column has the same config but for its norms. The learning rate is scaled '
        f'linearly with the batch, from that for {header["base_batch"]} images '
        f'({header["base_from"]}); the length and the schedules, where they count iterations, are '
        'scaled the other way, so that all runs see the same number of images, but for rounding. '
        'Hooks that count iterations stay as they are.',
        '',
    ]
    rows = []
    for record in sorted(
        {r['images']: r for r in records if 'lr' in r}.values(), key=lambda r: r['images']
    ):
        iterations, epochs = record['max_iters'], record['max_epochs']
        batch = record['processes'] * record['images']
        length = f'{iterations} iterations' if iterations else f'{epochs} epochs'
        images = str(iterations * batch) if iterations else f'{epochs} times the data set'
        rate = f'{record["lr"]:g} ({record["optimizer"]})'
        rows.append([f'{record["processes"]} x {record["images"]}', rate, length, images])
    table = markdown_table(['batch', 'learning rate', 'length', 'images'], rows)
    return [*lines, table, '', *[f'- {note}' for note in header['notes']]]
