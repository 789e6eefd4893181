"""Measures a training step of a model with its own norms and with SN, side by side.

A step is forward, backward and the optimizer's, on two made-up images. Both models have every layer
in training mode and nothing frozen. They take turns, so that the ratio holds even where the machine
does not stay the same. Prints a table; writes the figures with the machine, versions and date.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

from ..atomic import atomic_path
from ..benchmark.batches import BATCH_SIZE, make_batch
from ..benchmark.configs import build_for_one_process, dicts
from ..benchmark.device import find_device, hold_freed_memory
from ..benchmark.machine import describe, file_name
from ..benchmark.measure import measure_steps
from ..errors import InputError
from ..output.files import check_file
from .config import read_config
from .errors import report_input_errors
from .norm_option import switch_norms

RESULTS = Path('work_dirs/benchmarks')


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


@report_input_errors
def run(args: Namespace) -> None:
    if args.out:
        check_file('--out', args.out)
    args.norm = args.norm or ['SN']
    args.device = find_device(args.device)
    cfg = read_config(args.config)
    if 'model' not in cfg:
        raise InputError(f'config {args.config} has no model')
    hold_freed_memory(args.program)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    train_all(cfg._cfg_dict.model)
    switched = Config(cfg._cfg_dict.to_dict(), filename=cfg.filename)
    switch_norms(switched, args)

    configs = {'own norms': cfg, 'SN': switched}
    models = {name: build_for_one_process(c).to(args.device) for name, c in configs.items()}
    steps = {name: make_step(model, cfg, args.size) for name, model in models.items()}
    measured = measure_steps(steps, 'own norms', args.device, args.repeats, warmup=0)
    records = [{'model': name, **record} for name, record in measured.items()]
    name = f'{Path(cfg.filename).stem}-{file_name(args.device)}.json'
    out = args.out or RESULTS / name
    described = {**describe(args.device), 'config': args.config, 'size': args.size}
    with atomic_path(out) as path:
        path.write_text(json.dumps({'machine': described, 'records': records}, indent=1) + '\n')

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
