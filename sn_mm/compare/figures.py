"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..output.figures import LINES, SCOPES
from .results import Group

_MARKERS = 'osv^Dpx'
_SPREAD = 0.025
_DASHES = ('-', '--', ':', '-.')


def draw_metric(comparisons: Mapping[str, tuple[Mapping, str]], processes: int) -> Figure:
    """Draws the means over images per process, a line for each norm, the range shaded.

    Args:
        comparisons: By title, the groups of a comparison and the name of its metric: a panel each.
        processes: Of each run.
    """
    norms = list(dict.fromkeys(norm for groups, _ in comparisons.values() for norm, _ in groups))
    columns = min(len(comparisons), 2)  # more cannot be read at the width of a page
    rows = -(-len(comparisons) // columns)
    spare = rows * columns > len(comparisons)  # room for the legend
    width, height = (4.4, 4) if len(comparisons) == 1 else (3.2, 3)
    figure = Figure((width * columns + 2 * (not spare), height * rows), layout='constrained')
    panels = iter(figure.subplots(rows, columns, squeeze=False).flat)
    handles: dict[str, Line2D] = {}
    for (title, (groups, name)), axes in zip(comparisons.items(), panels):
        for line in _draw_groups(axes, groups, norms):
            norm = str(line.get_label()).partition(': ')[0]
            if norm not in handles or np.size(line.get_xdata()):  # it runs in one of the panels
                handles[norm] = line
        _batches(axes, sorted({count for _, count in groups}), processes)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(name)
        axes.grid(linewidth=0.3)
    lines = list(handles.values())
    if spare:
        next(panels).legend(handles=lines, loc='center', frameon=False)
    else:
        figure.legend(handles=lines, loc='outside right upper', fontsize=8, frameon=False)
    for axes in figure.axes[len(comparisons) :]:
        axes.set_axis_off()
    return figure


def _draw_groups(
    axes: Axes, groups: Mapping[tuple[str, int], Group], norms: Sequence[str]
) -> list[Line2D]:
    """One comparison; a norm has the same colour in each."""
    images = sorted({count for _, count in groups})
    lines = []
    for number, norm in enumerate(norms):
        if not any((norm, n) in groups for n in images):
            continue
        style = _style(number)
        shift = _SPREAD * (number - (len(norms) - 1) / 2)  # lines that coincide stay visible
        drawn = [n for n in images if (norm, n) in groups and groups[norm, n].values]
        found = [groups[norm, n] for n in drawn]
        places = [images.index(n) + shift for n in drawn]
        label = norm if drawn else f'{norm}: does not run'
        lines += axes.plot(places, [g.mean for g in found], label=label, **style)
        low, high = ([edge(g.values) for g in found] for edge in (min, max))
        axes.fill_between(places, low, high, color=style['color'], alpha=0.15, linewidth=0)
        axes.vlines(places, low, high, color=style['color'], linewidth=1)
    return lines


def draw_importance(importance: Mapping[str, Mapping[int, Any]], processes: int) -> Figure:
    """Draws the importance of the scopes over the batch: a column a norm, for mean and variance."""
    figure = Figure((3.4 * len(importance) + 0.8, 4.4), layout='constrained')
    panels = figure.subplots(2, len(importance), sharey=True, sharex=True, squeeze=False)
    images = sorted({count for by_images in importance.values() for count in by_images})
    for column, (norm, by_images) in enumerate(importance.items()):
        for row, statistic in enumerate(('mean', 'var')):
            axes = panels[row, column]
            scopes = next(iter(by_images.values()))[statistic]
            for scope in scopes:
                axes.plot(
                    [images.index(n) for n in by_images],
                    [found[statistic][scope] for found in by_images.values()],
                    marker='o',
                    color=SCOPES[scope],
                    label=scope,
                )
            axes.axhline(1 / len(scopes), color='grey', linewidth=0.7, linestyle=(0, (4, 3)))
            axes.grid(linewidth=0.3)
            if row == 0:
                axes.set_title(norm, fontsize=9)
            else:
                _batches(axes, images, processes)
            if column == 0:
                axes.set_ylabel(f'importance, {"mean" if statistic == "mean" else "variance"}')
    handles = {h.get_label(): h for axes in panels.flat for h in axes.get_lines()}
    chosen = {scope: handles[scope] for scope in SCOPES if scope in handles}
    figure.legend(chosen.values(), chosen, loc='outside right upper', fontsize=8, frameon=False)
    return figure


def draw_cost(
    costs: Mapping[tuple[str, int], Sequence[float]], norms: Sequence[str], processes: int
) -> Figure:
    """Draws seconds per iteration and peak memory, a bar for each norm at each batch."""
    images = sorted({count for _, count in costs})
    figure = Figure((9, 3.4), layout='constrained')
    panels = figure.subplots(1, 2)
    width = 0.8 / len(norms)
    for panel, axes in enumerate(panels):
        for number, norm in enumerate(norms):
            drawn = [n for n in images if (norm, n) in costs]
            places = [images.index(n) - 0.4 + width * (number + 0.5) for n in drawn]
            heights = [costs[norm, n][panel] for n in drawn]
            axes.bar(places, heights, width, color=_style(number)['color'], label=norm)
        _batches(axes, images, processes)
        axes.set_ylabel(('seconds per iteration', 'peak memory of a process, MiB')[panel])
        axes.grid(axis='y', linewidth=0.3)
        axes.set_axisbelow(True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right upper', fontsize=8, frameon=False)
    return figure


def _style(number: int) -> dict[str, Any]:
    return {
        'color': LINES[number % len(LINES)],
        'marker': _MARKERS[number % len(_MARKERS)],
        'linestyle': _DASHES[number // len(LINES) % len(_DASHES)],
        'markersize': 5,
    }


def _batches(axes: Axes, images: Sequence[int], processes: int) -> None:
    axes.set_xticks(range(len(images)), [str(n) for n in images])
    axes.set_xlim(-0.5, len(images) - 0.5)
    axes.set_xlabel(f'images of each of {processes} processes')
