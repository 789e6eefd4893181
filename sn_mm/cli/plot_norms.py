"""Draws comparisons of norms side by side: the metric over images per process, a panel for each."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from ..compare.figures import draw_metric
from ..compare.results import METRICS, group, metric_name
from ..compare.run import finished
from ..errors import InputError
from ..output.figures import save_figure
from ..output.files import check_folder
from .errors import check_labels, report_input_errors


def metric_of(records: Sequence[dict]) -> str:
    """The metric by which tests are compared, unless ``--metric`` names one.

    Raises:
        InputError: No test has one.
    """
    names = {name for record in records for name in record.get('metrics', ())}
    found = [metric for metric in METRICS.values() if metric in names]
    if not found:
        raise InputError(f'--metric must be one of {", ".join(sorted(names)) or "none"}')
    return found[0]


@report_input_errors
def run(args: Namespace) -> None:
    """Writes the figure.

    Raises:
        InputError: A folder without results, other numbers of labels than of folders, or
            comparisons with different numbers of processes.
    """
    check_folder('--out', args.out.parent)
    if not args.out.name.strip('.'):
        raise InputError(f'--out must be the name of a figure, got {args.out}')
    labels = args.labels or [folder.resolve().name for folder in args.folders]
    check_labels(labels, len(args.folders), 'comparisons')
    panels, processes = {}, set()
    for folder, label in zip(args.folders, labels):
        records = list(finished(folder).values())
        if not records:
            raise InputError(f'{folder} has no runs.jsonl of compare_norms with a result')
        metric = args.metric or metric_of(records)
        panels[label] = group(records, metric), metric_name(metric)
        processes |= {record['processes'] for record in records}
    if len(processes) > 1:
        raise InputError(
            f'comparisons of the same number of processes are needed, got {sorted(processes)}'
        )
    save_figure(draw_metric(panels, processes.pop()), args.out)
    print(f'{args.out}.png')
