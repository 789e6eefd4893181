"""Measures a training step of a model with its own norms and with SN, side by side.

    python tools/benchmark_model.py mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py --size 800
    python tools/benchmark_model.py CONFIG --size 256 --norm SN --norm-extent all

A step is forward, backward and the optimizer's, on two made-up images. Both models have every layer
in training mode and nothing frozen. They take turns, so that the ratio holds even where the machine
does not stay the same. Prints a table; writes the figures with the machine, versions and date.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

from ..benchmark.batches import BATCH_SIZE, make_batch
from ..benchmark.configs import build_for_one_process, dicts
from ..benchmark.device import find_device, hold_freed_memory
from ..benchmark.measure import peak_bytes, spread, time_side_by_side
from ..errors import InputError
from .config import read_config
from .errors import report_input_errors
from .files import check_file
from .machine import describe, file_name
from .norm_option import add_switch_arguments, switch_norms

RESULTS = Path(__file__).parents[2] / 'docs' / 'benchmarks'


def train_all(model: Any) -> None:
    """Changes the settings of a model's config that keep norms from training."""
    for node in dicts(model):
        node.update({k: v for k, v in (('norm_eval', False), ('frozen_stages', -1)) if k in node})


def make_step(model: Any, cfg: Config, size: int) -> Callable[[], Any]:
    if getattr(model.data_preprocessor, 'size', None):  # mmseg pads to it
        model.data_preprocessor.size = (size, size)
    batch = make_batch(cfg, size)
    # The learning rate is 0, so that every step is the same work.
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9))

    def step() -> None:
        torch.manual_seed(0)
        model.train_step(batch, optimizer)

    return step


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='a path, or PACKAGE::PATH such as mmdet::mask_rcnn/NAME.py')
    parser.add_argument('--size', type=int, default=256, help='side of the images (%(default)s)')
    add_switch_arguments(parser)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='cpu, or cuda with an optional number (%(default)s)')  # fmt: skip
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(),
                        help="threads of PyTorch's kernels (%(default)s)")  # fmt: skip
    parser.add_argument('--repeats', type=int, default=15, help='steps of each (%(default)s)')
    parser.add_argument('--out', type=Path, metavar='FILE.json',
                        help='the figures (docs/benchmarks/CONFIG-DEVICE.json)')  # fmt: skip
    args = parser.parse_args()
    for name in ('size', 'threads', 'repeats'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name} must be at least 1, got {getattr(args, name)}')
    if args.out:
        check_file('--out', args.out)
    args.norm = args.norm or {'type': 'SN'}
    args.device = find_device(args.device)
    return args


@report_input_errors
def main() -> None:
    args = parse_args()
    cfg = read_config(args.config)
    if 'model' not in cfg:
        raise InputError(f'config {args.config} has no model')
    hold_freed_memory()
    torch.set_num_threads(args.threads)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    train_all(cfg._cfg_dict.model)
    switched = Config(cfg._cfg_dict.to_dict(), filename=cfg.filename)
    switch_norms(switched, args)

    configs = {'own norms': cfg, 'SN': switched}
    models = {name: build_for_one_process(c).to(args.device) for name, c in configs.items()}
    steps = {name: make_step(model, cfg, args.size) for name, model in models.items()}
    times = time_side_by_side(steps, args.device, args.repeats, warmup=0)
    own = median(times['own norms'])
    records: list[dict[str, Any]] = [
        {
            'model': name,
            'step': spread(times[name]),
            'ratio': median(times[name]) / own,
            'peak_mib': peak_bytes(step, args.device) / 2**20,
        }
        for name, step in steps.items()
    ]
    name = f'{Path(cfg.filename).stem}-{file_name(args.device)}.json'
    out = args.out or RESULTS / name
    out.parent.mkdir(parents=True, exist_ok=True)
    described = {**describe(args.device), 'config': args.config, 'size': args.size}
    out.write_text(json.dumps({'machine': described, 'records': records}, indent=1) + '\n')

    table = Table(title=f'A training step on {BATCH_SIZE} images of {args.size}x{args.size}')
    for column in ('norms', 'ms', 'quartiles', 'ratio', 'peak MiB'):
        table.add_column(column, justify='right')
    for r in records:
        times_ms = r['step']
        table.add_row(
            r['model'], f'{times_ms["median"]:.1f}', f'{times_ms["q1"]:.1f}-{times_ms["q3"]:.1f}',
            f'{r["ratio"]:.3f}', f'{r["peak_mib"]:.0f}',
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(f'Written: {out}', soft_wrap=True)
