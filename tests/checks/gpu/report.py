"""The report of tools/check_gpu.sh: tables in Markdown, JSON, and the figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bounds import Mark
from .processes import Result

Rows = list[Sequence[str]]


def table(header: Sequence[str], rows: Rows) -> str:
    """A table that reads well as text and as Markdown."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return '| ' + ' | '.join(c.ljust(w) for c, w in zip(row, widths)) + ' |'

    rule = '|' + '|'.join('-' * (w + 2) for w in widths) + '|'
    return '\n'.join([line(header), rule, *map(line, rows)])


def make_report(
    machine: dict[str, Any], results: Sequence[Result], marks: Sequence[Mark], quick: bool
) -> str:
    steps = {result.name: result for result in results}
    named = 'torch', 'triton', 'SN_MM_BACKEND', 'date', 'cpu'
    said = ', '.join(f'{key} {machine[key]}' for key in named if machine.get(key))
    device = machine.get('device', 'unknown: the device did not answer')
    parts = [f'# Check on {device}', said]
    if quick:
        parts.append('Small sizes: the figures show that the steps work, not how fast SN is.')
    parts += ['## Steps', table(('step', 'result', 'seconds', 'reason'), [
        (r.name, r.status, f'{r.seconds:.0f}', r.reason) for r in results])]  # fmt: skip
    parts += ['## Bounds', table(('bound', 'limit', 'value', 'mark', 'note'), [
        (m.name, m.bound, '-' if m.value is None else f'{m.value:.3g}', m.mark, m.note)
        for m in marks])]  # fmt: skip
    for title, header, rows in (
        ('Tests', ('backend', 'passed', 'failed', 'skipped', 'not run'), _tests(results)),
        ('Launches', ('layer', 'input', 'forward', 'backward', 'evaluation'), _launches(steps)),
        ('Host time of a layer, microseconds',
         ('layer', 'forward', 'forward + backward', 'evaluation'), _host(steps)),
        ('Training step of a ResNet',
         ('norm', '', 'ms', 'in times of BatchNorm', 'peak MiB'), _training(steps)),
        ('Layers: forward + backward in times of BatchNorm',
         ('input', 'dtype, format', 'SN', 'SN, synchronized', 'SyncBatchNorm', 'GroupNorm',
          'SN of copy', 'copy GB/s'), _layers(steps)),
    ):  # fmt: skip
        if rows:
            parts += [f'## {title}', table(header, rows)]
    return '\n\n'.join(parts) + '\n'


def _records(steps: dict[str, Result], name: str) -> list[dict[str, Any]]:
    return steps[name].records if name in steps else []


def _tests(results: Sequence[Result]) -> Rows:
    rows: Rows = []
    for record in (r for result in results if 'tests' in result.name for r in result.records):
        not_run = '; '.join(f'{count} x {why}' for why, count in record['not_run'].items())
        counts = (str(record[key]) for key in ('passed', 'failed', 'skipped'))
        rows.append((record['backend'], *counts, not_run or '-'))
    return rows


def _launches(steps: dict[str, Result]) -> Rows:
    return [
        (r['layer'], f'{r["dtype"]}, {r["format"]}', *(str(len(s)) for s in r['started'].values()))
        for r in _records(steps, 'launches')
    ]


def _host(steps: dict[str, Result]) -> Rows:
    return [
        (
            r['layer'],
            *(f'{r["microseconds"][k]:.0f}' for k in ('forward', 'forward_backward', 'eval')),
        )
        for r in _records(steps, 'host_time')
    ]


def _training(steps: dict[str, Result]) -> Rows:
    rows: Rows = []
    for step, kind in (('training', 'eager'), ('compiled', 'compiled')):
        for r in _records(steps, step):
            if 'error' in r:
                rows.append((r['norm'], kind, '-', '-', r['error']))
            else:
                numbers = f'{r["step"]["median"]:.2f}', f'{r["ratio"]:.3f}', f'{r["peak_mib"]:.0f}'
                rows.append((r['norm'], kind, *numbers))
    return rows


def _layers(steps: dict[str, Result]) -> Rows:
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for r in _records(steps, 'layers'):
        case = f'{r["model"]} {"x".join(map(str, r["shape"]))}', f'{r["dtype"]}, {r["format"]}'
        cases.setdefault(case, {})[r['layer']] = r
    names = 'SN', 'SN, synchronized', 'SyncBatchNorm', 'GroupNorm'
    return [
        (
            *case,
            *(f'{layers[n]["ratio"]:.2f}' if n in layers else '-' for n in names),
            f'{100 * layers["SN"]["copy_share"]:.0f}%' if 'SN' in layers else '-',
            f'{next(iter(layers.values()))["copy_gb_per_s"]:.0f}',
        )
        for case, layers in cases.items()
    ]


def make_json(
    machine: dict[str, Any], results: Sequence[Result], marks: Sequence[Mark], quick: bool
) -> str:
    written = {
        'machine': machine,
        'quick': quick,
        'steps': [result._asdict() for result in results],
        'bounds': [mark._asdict() for mark in marks],
    }
    return json.dumps(written, indent=1) + '\n'


def draw(machine: dict[str, Any], results: Sequence[Result], out: Path) -> str:
    """Draws the layers' times into ``out``; returns one line: the file, or why it is missing."""
    records = next((r.records for r in results if r.name == 'layers'), [])
    if not records or not machine:
        return 'No figure: no layer was measured.'
    try:
        from sn_mm.benchmark.figure import draw_ratios
    except ImportError as error:
        return f'No figure: {error}.'
    figure = draw_ratios(machine, records)
    for suffix in ('png', 'svg'):
        figure.savefig(out / f'layers.{suffix}', dpi=150)
    return 'Figure: layers.png, layers.svg'
