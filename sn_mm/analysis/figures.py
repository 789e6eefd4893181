"""Figures of the importance, as in the paper's analysis of what SN learns.

Lengths are inches, so that letters and bars keep their size however many layers a figure shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..equations import SCOPES
from ..output.figures import SCOPES as COLORS
from .importance import STATISTICS, Importance, average, by_component, components

__all__ = ['draw_components', 'draw_course', 'draw_layers']

Network = Mapping[str, Importance]

_LETTERING = {'in': 'black', 'ln': 'black', 'bn': 'white'}
_SCOPE_NAMES = {'in': 'instance (in)', 'ln': 'layer (ln)', 'bn': 'minibatch (bn)'}
_STATISTIC_NAMES = {'mean': 'Mean', 'var': 'Variance'}
_ALL = 'all layers'

_HEADER, _MARGIN, _CAPTION, _STRIP = 0.7, 0.4, 0.24, 0.9
_SMALL, _TEXT, _TITLE = 7, 9, 12
_LETTER = {_SMALL: 0.06, _TEXT: 0.08}
_EQUAL: dict[str, Any] = {'linewidth': 0.7, 'linestyle': (0, (4, 3))}
_MAX_BARS, _MAX_COLUMNS = 60, 6
_SLANT = math.radians(35)
_GAP = 0.8
"""Space between components, in bars."""


class _Row(NamedTuple):
    """A row of bars: the component and the label of each, and its importance strip by strip."""

    components: list[str]
    labels: list[str]
    strips: Mapping[str, Sequence[Mapping[str, float]]]


class _Span(NamedTuple):
    """A run of bars of one component."""

    component: str
    first: float
    last: float


def draw_layers(networks: Mapping[str, Network]) -> Figure:
    """Draws each layer's importance for the mean and for the variance, in network order.

    One bar a layer, stacked by scope, in rows of at most 60. Several networks share the horizontal
    axis: layers of the same component and name stand below each other, and where a network lacks
    one, its place stays empty.

    Args:
        networks: Importance by layer name, by the label of the network.
    """
    layers: dict[str, dict[str, dict[str, Importance]]] = {}
    for title, network in networks.items():
        for component, names in components(network).items():
            for name, short in names.items():
                layers.setdefault(component, {}).setdefault(short, {})[title] = network[name]
    bars = [(component, short) for component in layers for short in layers[component]]
    count = math.ceil(len(bars) / math.ceil(len(bars) / _MAX_BARS))
    rows = []
    for start in range(0, len(bars), count):
        row = bars[start : start + count]
        strips = {
            _caption(statistic, title if len(networks) > 1 else ''): [
                layers[component][short].get(title, {}).get(statistic, {})
                for component, short in row
            ]
            for statistic in STATISTICS
            for title in networks
        }
        rows.append(_Row([component for component, _ in row], [short for _, short in row], strips))
    pitch = min(0.32, max(0.19, 7 / count))
    return _draw_rows('Importance by layer', rows, pitch)


def draw_components(networks: Mapping[str, Network]) -> Figure:
    """Draws the average importance of each component and of all layers.

    Args:
        networks: Importance by layer name, by the label of the network. Their bars stand side by
            side, in this order.
    """
    averages = {
        label: {**by_component(network), _ALL: average(network.values())}
        for label, network in networks.items()
    }
    names = [*dict.fromkeys(name for a in averages.values() for name in a if name != _ALL), _ALL]
    bars = [(name, label) for name in names for label in networks if name in averages[label]]
    strips = {
        _caption(statistic): [averages[label][name][statistic] for name, label in bars]
        for statistic in STATISTICS
    }
    labels = [label if len(networks) > 1 else '' for _, label in bars]
    title = 'Importance by component: averages in percent'
    row = _Row([name for name, _ in bars], labels, strips)
    pitch = max(_width(name) / (row.components.count(name) + _GAP) for name in names)
    return _draw_rows(title, [row], max(0.36, pitch), percentages=True)


def draw_course(course: Mapping[int, Network]) -> Figure:
    """Draws how the average importance of each component went over training.

    Args:
        course: Importance by component, by training iteration; two iterations or more.
    """
    steps = sorted(course)
    names = list(course[steps[0]])
    columns = math.ceil(len(names) / math.ceil(len(names) / _MAX_COLUMNS))
    width, gap, above, below = 1.5, 0.35, 0.1, 0.4
    height = above + len(STATISTICS) * (_CAPTION + _STRIP) + below
    page = _Page(
        'Importance over training, average of each component',
        columns * (width + gap) - gap,
        math.ceil(len(names) / columns) * height,
    )
    for index, name in enumerate(names):
        left, top = index % columns * (width + gap), index // columns * height + above
        for statistic in STATISTICS:
            axes = page.strip(left, top, width, f'{name}: {_caption(statistic).lower()}')
            found = [course[step][name][statistic] for step in steps]
            areas = [[at.get(scope, 0.0) for at in found] for scope in SCOPES]
            axes.stackplot(steps, areas, colors=list(COLORS.values()))
            axes.set_xlim(steps[0], steps[-1])
            top += _CAPTION + _STRIP
        axes.set_xticks([steps[0], steps[-1]])
        start, end = axes.get_xticklabels()
        start.set_horizontalalignment('left')
        end.set_horizontalalignment('right')
        axes.tick_params(axis='x', labelsize=_SMALL)
        axes.set_xlabel('iteration', fontsize=_SMALL, labelpad=0)
    return page.figure


class _Page:
    """A figure laid out in inches from its top left, below a title and the legend of scopes."""

    def __init__(self, title: str, width: float, height: float) -> None:
        self.width = max(width, 5) + 2 * _MARGIN
        self.height = _HEADER + height
        self.figure = Figure((self.width, self.height))
        left = _MARGIN / self.width
        self.figure.text(left, self._y(0.12), title, va='top', fontsize=_TITLE, weight='bold')
        self.figure.legend(
            handles=[
                *(Patch(color=COLORS[scope], label=_SCOPE_NAMES[scope]) for scope in SCOPES),
                Line2D([], [], color='0.6', label='equal importance', **_EQUAL),
            ],
            loc='upper left',
            bbox_to_anchor=(left, self._y(0.4)),
            ncols=len(SCOPES) + 1,
            fontsize=_TEXT,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.2,
            columnspacing=1.5,
        )

    def _y(self, inches: float) -> float:
        return 1 - inches / self.height

    def strip(self, left: float, top: float, width: float, caption: str) -> Axes:
        """Axes from 0 to 1, below their caption; white lines mark equal importance."""
        bottom = self._y(_HEADER + top + _CAPTION + _STRIP)
        size = width / self.width, _STRIP / self.height
        axes = self.figure.add_axes(((_MARGIN + left) / self.width, bottom, *size))
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 1 / 3, 2 / 3, 1], ['0', '⅓', '⅔', '1'], fontsize=_SMALL)
        for third in (1 / 3, 2 / 3):
            axes.axhline(third, color='white', zorder=3, **_EQUAL)
        axes.set_xticks([])
        axes.tick_params(length=2, pad=2)
        axes.spines[:].set_visible(False)
        axes.set_title(caption, loc='left', fontsize=_TEXT, pad=4)
        return axes


def _draw_rows(title: str, rows: Sequence[_Row], pitch: float, percentages: bool = False) -> Figure:
    """Draws rows of stacked bars one below the other, with their components marked on top."""
    places = [_places(row.components) for row in rows]
    spans = [_spans(row.components, at) for row, at in zip(rows, places)]
    slanted = [[s for s in row if not _fits(s, pitch)] for row in spans]
    above = [
        0.3 + math.sin(_SLANT) * max((_width(s.component) for s in row), default=0)
        for row in slanted
    ]
    below = [0.2 + _LETTER[_SMALL] * max(map(len, row.labels)) for row in rows]
    strips = [len(row.strips) * (_CAPTION + _STRIP) for row in rows]
    heights = [sum(parts) for parts in zip(above, strips, below)]
    width = (max(map(max, places)) + 1) * pitch
    ends = [s.last * pitch + math.cos(_SLANT) * _width(s.component) for row in slanted for s in row]
    page = _Page(title, max([width, *ends]), sum(heights))
    for index, (row, at) in enumerate(zip(rows, places)):
        top = sum(heights[:index]) + above[index]
        for number, (caption, bars) in enumerate(row.strips.items()):
            axes = page.strip(0, top, (at[-1] + 1) * pitch, caption)
            axes.set_xlim(-0.5, at[-1] + 0.5)
            _draw_bars(axes, at, bars, percentages)
            if number == 0:
                _draw_spans(axes, spans[index], pitch)
            top += _CAPTION + _STRIP
        axes.set_xticks(at, row.labels, rotation=90, fontsize=_SMALL)
        axes.tick_params(axis='x', length=0)
    return page.figure


def _caption(statistic: str, label: str = '') -> str:
    return f'{_STATISTIC_NAMES[statistic]}, {label}' if label else _STATISTIC_NAMES[statistic]


def _places(names: Sequence[str]) -> list[float]:
    """Places of bars on the horizontal axis, one apart, with a gap where the component changes."""
    places = [0.0]
    for last, name in zip(names, names[1:]):
        places.append(places[-1] + 1 + _GAP * (name != last))
    return places


def _spans(names: Sequence[str], places: Sequence[float]) -> list[_Span]:
    runs = (list(run) for _, run in groupby(zip(names, places), key=lambda bar: bar[0]))
    return [_Span(run[0][0], run[0][1], run[-1][1]) for run in runs]


def _width(name: str) -> float:
    """Room that the name of a component takes."""
    return (len(name) + 1) * _LETTER[_TEXT]


def _fits(span: _Span, pitch: float) -> bool:
    """Whether the component's name fits above its bars; otherwise it is slanted."""
    return (span.last - span.first + 1 + _GAP) * pitch >= _width(span.component) - 1e-6


def _draw_bars(
    axes: Axes, places: Sequence[float], bars: Sequence[Mapping[str, float]], percentages: bool
) -> None:
    bottom = [0.0] * len(bars)
    for scope in SCOPES:
        heights = [bar.get(scope, 0.0) for bar in bars]
        axes.bar(places, heights, 0.88, bottom, color=COLORS[scope])
        for x, y, height in zip(places, bottom, heights):
            if percentages and height >= 0.1:
                axes.text(
                    x,
                    y + height / 2,
                    f'{100 * height:.0f}',
                    fontsize=_SMALL,
                    color=_LETTERING[scope],
                    ha='center',
                    va='center',
                    zorder=4,
                    bbox={'facecolor': COLORS[scope], 'linewidth': 0, 'pad': 0.5},
                )
        bottom = [y + height for y, height in zip(bottom, heights)]


def _draw_spans(axes: Axes, spans: Sequence[_Span], pitch: float) -> None:
    """Marks components by lines above the strip's caption, with their names on top."""
    line = 1 + (_CAPTION + 0.02) / _STRIP
    text = line + 0.04 / _STRIP
    for span in spans:
        ends = [span.first - 0.44, span.last + 0.44]
        axes.plot(ends, [line, line], color='0.35', linewidth=1.2, clip_on=False)
        fits = _fits(span, pitch)
        axes.text(
            (span.first + span.last) / 2,
            text,
            span.component,
            fontsize=_TEXT,
            rotation=0 if fits else math.degrees(_SLANT),
            rotation_mode='anchor',
            ha='center' if fits else 'left',
        )
