"""Measures a model with its own norms and with SN, side by side: a training step, or inference.

A step is forward, backward and the optimizer's, on two made-up images. Both models have every layer
in training mode and nothing frozen. With --compile the models also run with backbone and neck under
torch.compile; what stands behind them depends on the number of boxes. Inference is that of one
image on the CPU, in onnxruntime with the files that export-onnx writes, and eager. In both of these
the model with GN takes part, too. The models take turns, so that ratios hold even where the machine
does not stay the same. Prints a table; writes the figures with the machine, versions and date.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch import nn

from ..atomic import atomic_path
from ..benchmark.batches import BATCH_SIZE, make_batch
from ..benchmark.configs import build_for_one_process
from ..benchmark.device import find_device, hold_freed_memory
from ..benchmark.layers import FORMATS
from ..benchmark.machine import describe, file_name
from ..benchmark.measure import host_times, measure_steps, spread, time_side_by_side
from ..errors import InputError
from ..output.files import check_file
from ..switch import switch_config
from ..switch.nodes import dicts
from ..switch.option import parse_norm
from .config import read_config
from .errors import report_input_errors
from .export_onnx import Exported, export
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


def compile_features(model: nn.Module) -> nn.Module:
    """Puts backbone and neck under torch.compile."""
    for name in ('backbone', 'neck'):
        part = getattr(model, name, None)
        if part is not None:
            setattr(model, name, torch.compile(part))
    return model


@torch.no_grad()
def infer(network: nn.Module, image: torch.Tensor) -> Any:
    return network(image)


def make_inferences(name: str, model: nn.Module, size: int) -> dict[str, Callable[[], Any]]:
    """One image through a model in onnxruntime and, by the name with 'eager', as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    network, image = Exported(model.eval()).eval(), torch.randn(1, 3, size, size)
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        export(network, image, path)
        session = onnxruntime.InferenceSession(path, options, ['CPUExecutionProvider'])
    return {
        name: partial(session.run, None, {'image': image.numpy()}),
        f'{name}, eager': partial(infer, network, image),
    }


def check_onnx(args: Namespace) -> None:
    if args.device not in (None, 'cpu'):
        raise InputError(f'--onnx measures on the CPU, got --device {args.device}')
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise InputError(f'--onnx needs {" and ".join(missing)} (pip install {" ".join(missing)})')
    args.device = 'cpu'


def measure(configs: Mapping[str, Config], args: Namespace) -> list[dict[str, Any]]:
    def build(cfg: Config) -> nn.Module:
        model = build_for_one_process(cfg).to(args.device)
        return model.to(memory_format=FORMATS[args.format])  # type: ignore[call-overload]

    models = {name: build(cfg) for name, cfg in configs.items()}
    if args.onnx:
        runs: dict[str, Callable[[], Any]] = {}
        for name, model in models.items():
            runs.update(make_inferences(name, model, args.size))
        times = time_side_by_side(runs, args.device, args.repeats)
        own = median(times['own norms'])
        measured = {
            name: {'inference': spread(seconds), 'ratio': median(seconds) / own}
            for name, seconds in times.items()
        }
    else:
        if args.compile:
            compiled = {f'{k}, compiled': compile_features(build(c)) for k, c in configs.items()}
            models.update(compiled)
        cfg = configs['own norms']
        steps = {name: make_step(model, cfg, args.size) for name, model in models.items()}
        measured = measure_steps(steps, 'own norms', args.device, args.repeats, warmup=0)
        if args.device.type == 'cuda':  # on a CPU it is the whole step
            for name, seconds in host_times(steps, args.device, args.repeats).items():
                measured[name]['host'] = spread(seconds)
    return [{'model': name, **record} for name, record in measured.items()]


def make_table(title: str, records: list[dict[str, Any]]) -> Table:
    more: dict[str, Callable[[dict[str, Any]], str]] = {}
    if 'peak_mib' in records[0]:
        more['peak MiB'] = lambda r: f'{r["peak_mib"]:.0f}'
    if 'host' in records[0]:
        more['host ms'] = lambda r: f'{r["host"]["median"]:.1f}'
    table = Table(title=title)
    for column in ('norms', 'ms', 'quartiles', 'ratio', *more):
        table.add_column(column, justify='right')
    for r in records:
        times_ms = r['inference'] if 'inference' in r else r['step']
        table.add_row(
            r['model'], f'{times_ms["median"]:.1f}', f'{times_ms["q1"]:.1f}-{times_ms["q3"]:.1f}',
            f'{r["ratio"]:.3f}', *(show(r) for show in more.values()),
        )  # fmt: skip
    return table


@report_input_errors
def run(args: Namespace) -> None:
    if args.out:
        check_file('--out', args.out)
    args.norm = args.norm or ['SN']
    if args.onnx and args.compile:
        raise InputError('--compile measures training steps, and --onnx inference')
    if args.onnx:
        check_onnx(args)
    args.device = find_device(args.device)
    cfg = read_config(args.config)
    if 'model' not in cfg:
        raise InputError(f'config {args.config} has no model')
    hold_freed_memory(args.program)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    train_all(cfg._cfg_dict.model)
    copies = (Config(cfg._cfg_dict.to_dict(), filename=cfg.filename) for _ in range(2))
    configs = {'own norms': cfg}
    if args.onnx or args.compile:
        configs['GN'] = next(copies)
        switch_config(configs['GN'], parse_norm(['GN']), args.norm_extent or 'existing')
    configs['SN'] = next(copies)
    switch_norms(configs['SN'], args)

    records = measure(configs, args)
    what = f'onnx-{args.size}' if args.onnx else file_name(args.device)
    out = args.out or RESULTS / f'{Path(cfg.filename).stem}-{what}.json'
    described = describe(args.device)
    described |= {'config': args.config, 'size': args.size, 'format': args.format}
    with atomic_path(out) as path:
        path.write_text(json.dumps({'machine': described, 'records': records}, indent=1) + '\n')

    measured = 'Inference of 1 image' if args.onnx else f'A training step on {BATCH_SIZE} images'
    table = make_table(f'{measured} of {args.size}x{args.size}, {args.format}', records)
    console = Console()
    console.print(table)
    console.print(f'Written: {out}', soft_wrap=True)
