"""Measures SN layers against PyTorch's norm layers, in time and in memory, side by side.

It goes through the inputs of ResNet-50-FPN, DeepLabV3+, RoI heads and some square ones, at the
sizes of the recipes on a GPU and with an eighth of the pixels on a CPU. On each, all layers take
turns, so that ratios hold even where the machine does not stay the same. Host time is what forward
with backward takes on a tiny input, until the work is enqueued. Prints a table; writes the figures
with the machine, versions and date as JSON, and a picture of them as PNG and SVG.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..atomic import atomic_path
from ..benchmark.device import find_device, hold_freed_memory
from ..benchmark.figure import draw_ratios
from ..benchmark.layers import measure_layers
from ..benchmark.machine import describe, file_name
from ..benchmark.shapes import Case, cases
from ..errors import InputError
from ..output.figures import save_figure
from ..output.files import check_file
from .errors import report_input_errors

TABLE_WIDTH = 200  # in a file or a pipe
RESULTS = Path('work_dirs/benchmarks')


def choose_layers(device: torch.device, compiled: bool) -> list[str]:
    """Names of the layers that are measured side by side."""
    names = ['BatchNorm', 'SN', 'InstanceNorm', 'plain SN']
    if device.type == 'cuda':
        names += ['SN, synchronized', 'SyncBatchNorm']
    names.append('GroupNorm')
    return [*names, 'BatchNorm, compiled', 'SN, compiled'] if compiled else names


def make_table(records: list[dict[str, Any]]) -> Table:
    table = Table(title='Times in ms, median of the repeats; memory in sizes of the input')
    table.add_column('input', no_wrap=True)
    table.add_column('layer', no_wrap=True)
    for name in ('forward', 'forward+backward', 'quartiles', '/ BatchNorm', 'limit', 'of copy',
                 'eval', '/ GN eval', '/ BN forward', 'kept', 'peak', 'host us'):  # fmt: skip
        table.add_column(name, justify='right', no_wrap=True)
    before = None
    for r in records:
        title = f'{r["model"]} {"x".join(map(str, r["shape"]))}\n{r["dtype"]} {r["format"]}'
        both = r['forward_backward']
        group = r['eval_to_group_norm']
        if title != before:
            table.add_section()
        table.add_row(
            title if title != before else '', r['layer'],
            f'{r["forward"]["median"]:.3f}', f'{both["median"]:.3f}',
            f'{both["q1"]:.3f}-{both["q3"]:.3f}', f'{r["ratio"]:.2f}', f'{r["limit"]:.3f}',
            f'{100 * r["copy_share"]:.0f}%', f'{r["eval"]["median"]:.3f}',
            '-' if group is None else f'{group:.2f}', f'{r["eval_to_batch_norm_forward"]:.2f}',
            f'{r["kept"]:.2f}', f'{r["peak"]:.2f}', f'{1e3 * r["host"]["median"]:.0f}',
        )  # fmt: skip
        before = title
    return table


def choose(args: Namespace) -> list[tuple[Case, str, str]]:
    """What the arguments ask to be measured."""
    try:
        wanted = re.compile(args.filter)
    except re.error as error:
        raise InputError(
            f'--filter must be a regular expression, got {args.filter!r}: {error}'
        ) from None
    chosen = [
        (case, dtype, memory_format)
        for memory_format in args.format
        for dtype in args.dtype
        for case in cases(args.device.type)
        if wanted.search(case.name)
    ]
    if not chosen:
        names = ', '.join(case.name for case in cases(args.device.type))
        raise InputError(f'--filter {args.filter!r} fits none of: {names}')
    return chosen


@report_input_errors
def run(args: Namespace) -> None:
    args.device = find_device(args.device)
    out: Path = args.out or RESULTS / f'layer-{file_name(args.device)}.json'
    chosen = choose(args)
    check_file('--out', out)
    hold_freed_memory(args.program)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    layers = choose_layers(args.device, args.compile)
    inputs = track(chosen, 'Measuring', console=Console(stderr=True))
    records = list(measure_layers(layers, inputs, args.device, args.repeats))
    described = describe(args.device)
    with atomic_path(out) as path:
        path.write_text(json.dumps({'machine': described, 'records': records}, indent=1) + '\n')
    save_figure(draw_ratios(described, records), out.with_suffix(''))
    console = Console()
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    console.print(make_table(records))
    console.print(f'Written: {out} and its pictures', soft_wrap=True)
