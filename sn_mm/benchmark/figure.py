"""The figure of a layer benchmark: time against BatchNorm, input by input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..output.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

_STYLES = {
    'SN': (RED, 'o'),
    'SN, synchronized': (RED, 'd'),
    'SyncBatchNorm': (BLUE, 's'),
    'GroupNorm': (GREEN, '^'),
    'InstanceNorm': (PURPLE, 'v'),
    'plain SN': (BLACK, 'x'),
    'SN, compiled': (RED, 'P'),
    'BatchNorm, compiled': (SKY, 'P'),
}
_PITCH, _MARGIN, _WIDTH, _LABELS = 0.26, 1.5, 4.2, 2.4  # inches


def draw_ratios(machine: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws forward with backward of each layer in times of BatchNorm's, quartiles as whiskers.

    One panel for each dtype and memory format, one row for each input.

    Args:
        machine: The result of ``sn_mm.benchmark.machine.describe``.
        records: The results of ``measure.measure``, with model, shape, dtype and format.
    """

    def panel(record: Mapping[str, Any]) -> tuple[str, str]:
        return record['dtype'], record['format']

    panels = {key: list(group) for key, group in groupby(sorted(records, key=panel), panel)}
    inputs = list(dict.fromkeys((r['model'], tuple(r['shape'])) for r in records))
    height = _MARGIN + _PITCH * (len(inputs) + 1)
    figure = Figure((_LABELS + _WIDTH * len(panels), height), layout='constrained')
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, ((dtype, memory_format), group) in zip(axes, panels.items()):
        for record in group:
            row = inputs.index((record['model'], tuple(record['shape'])))
            batch = record['forward_backward']['median'] / record['ratio']
            if record['layer'] in _STYLES:
                color, marker = _STYLES[record['layer']]
                middle, low, high = (
                    record['forward_backward'][k] / batch for k in ('median', 'q1', 'q3')
                )
                ax.plot([low, high], [row, row], color=color, linewidth=1)
                ax.plot(middle, row, marker, color=color, markersize=5)
            else:
                ax.plot(record['limit'] / batch, row, '|', color=ORANGE, markersize=9)
        ax.axvline(1, color=BLUE, linewidth=1)
        ax.set_xscale('log')
        ax.set_xlabel('forward + backward, in times of nn.BatchNorm2d')
        ax.xaxis.set_major_formatter('{x:g}')
        ax.set_title(f'{dtype}, {memory_format}', fontsize=10)
        ax.grid(axis='x', which='both', linewidth=0.3)
    axes[0].set_yticks(range(len(inputs)), [f'{m} {"x".join(map(str, s))}' for m, s in inputs])
    axes[0].set_ylim(len(inputs) - 0.5, -0.5)
    drawn = {r['layer'] for r in records}
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle='', label=name)
        for name, (color, marker) in _STYLES.items()
        if name in drawn
    ]
    limit = 'eight sweeps at the speed of a copy'
    handles.append(Line2D([], [], color=ORANGE, marker='|', linestyle='', label=limit))
    figure.legend(handles=handles, loc='outside lower center', ncols=3, fontsize=8, frameon=False)
    name = machine['cpu'] if machine['device'] == 'cpu' else machine['device']
    title = f'{name}, {machine["threads"]} threads, PyTorch {machine["torch"]}, {machine["date"]}'
    figure.suptitle(title, fontsize=9)
    return figure
