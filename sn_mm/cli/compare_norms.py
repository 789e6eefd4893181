"""Trains a model with one norm after the other, all else equal, and reports which one pays.

Each run trains and tests in a folder of its own; a run that is done is not repeated, so that a
comparison that was stopped goes on with the same command.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..benchmark.machine import describe
from ..compare.plan import (
    Run,
    base_batch_size,
    check_config,
    digest,
    norm_cfg_of,
    plan_runs,
    run_config,
    switch,
)
from ..compare.report import write_report
from ..compare.results import METRICS, group, value_of, verdict
from ..compare.run import Runner, finished, has_average, lock, read_found
from ..errors import InputError
from ..output.files import check_folder
from ..switch.toolbox import toolbox
from .config import load_config
from .data import check_data
from .errors import report_input_errors

NORMS = ['BN', 'GN', 'SyncBN', 'SN', 'SN sync=False', 'SN normalizers=[in,ln]']
# --quick goes the whole way in minutes, with the demo's DeepLabV3+ on few of the demo's scenes.
QUICK: dict[str, Any] = {
    'config': 'sn_mm::demo/deeplabv3plus_r18-d8-sn_2xb2-150_scenes.py',
    'norms': ['BN', 'SN'],
    'images': [1, 2],
    'seeds': 2,
    'cfg_options': ['train_cfg.max_iters=20', 'param_scheduler.0.end=5',
                    'param_scheduler.1.begin=5', 'param_scheduler.1.end=20',
                    'param_scheduler.1.T_max=15'],
}  # fmt: skip
QUICK_SCENES = ['--layout', 'cityscapes', '--size', '128', '--digits', '2', '4', '--digit-size',
                '0.28', '0.5', '--train', '80', '--val', '10']  # fmt: skip


def complete(args: Namespace) -> None:
    """Fills in what the command line leaves open.

    Raises:
        InputError: It names no config, asks for more GPUs than there are, or --quick lacks a
            package.
    """
    if args.quick == bool(args.config):
        raise InputError('CONFIG or --quick is needed, and not both')
    if args.quick:
        check_quick()
        args.config = QUICK['config']
        args.cfg_options = [*QUICK['cfg_options'], *args.cfg_options]
    args.norms = args.norms or (QUICK['norms'] if args.quick else NORMS)
    args.images = args.images or (QUICK['images'] if args.quick else [1, 2, 4])
    args.seeds = args.seeds or (QUICK['seeds'] if args.quick else 3)
    name = 'quick' if args.quick else Path(args.config.rpartition('::')[2]).stem
    args.out = args.out or Path('work_dirs/norms') / name
    gpus = torch.cuda.device_count()
    if gpus and args.jobs * args.processes > gpus:
        raise InputError(
            f'--jobs {args.jobs} with --processes {args.processes} needs '
            f'{args.jobs * args.processes} GPUs, {gpus} visible'
        )


def check_quick() -> None:
    """Checks that the packages of --quick are there.

    Raises:
        InputError: One is not; the message names the extra that brings it.
    """
    brings = {'mmseg': 'seg', 'mlxtend': 'demo', 'skimage': 'demo'}
    for package, extra in brings.items():
        if find_spec(package) is None:
            raise InputError(
                f'--quick needs the package {package}, which the extra {extra!r} of sn_mm brings: '
                f"pip install '.[{extra}]'"
            )


def make_quick_data(out: Path, program: Sequence[str]) -> None:
    """Makes the scenes of --quick, which its config finds by SCENES."""
    os.environ['SCENES'] = str(out / 'data')
    if subprocess.run([*program, 'make-scenes', str(out / 'data'), *QUICK_SCENES]).returncode:
        raise InputError('the scenes of --quick cannot be made')


def load(args: Namespace) -> tuple[Config, IO[str]]:
    """The config, complete and with its data, and the lock of the comparison's folder."""
    check_folder('--out', args.out)
    if (args.out / 'cells.jsonl').is_file():
        raise InputError(
            f'--out {args.out} is a comparison of version 1.0, which plot-norms reads and this '
            'command does not continue: name another folder'
        )
    if args.quick:  # its data are in the folder
        held = lock(args.out)
        make_quick_data(args.out, args.program)
        return load_checked(args), held
    return load_checked(args), lock(args.out)


def load_checked(args: Namespace) -> Config:
    """The config, if a comparison can be made of it."""
    loading = Namespace(
        config=args.config,
        cfg_options=args.cfg_options,
        work_dir=None,
        launcher='none',
        local_rank=0,
    )
    cfg = load_config(loading, 'train')
    load_config(loading, 'test')
    check_data(cfg, ('train', 'test'))
    check_config(cfg)
    return cfg


class Configs:
    """The configs of the runs; each norm is switched to once."""

    def __init__(self, cfg: Config, base_batch: int, extent: str) -> None:
        self.base_batch = base_batch
        self.switched = lru_cache(maxsize=None)(lambda norm: switch(cfg, norm, extent))

    def __call__(self, run: Run) -> Config:
        return run_config(self.switched(run.norm)[0], run, self.base_batch)

    def notes(self, norms: Iterable[str]) -> list[str]:
        """What the reader should know of the norms; nothing of one that does not fit the model."""
        told: dict[str, list[str]] = {}
        for norm in dict.fromkeys(norms):
            with suppress(Exception):
                for sentence in self.switched(norm)[1]:
                    told.setdefault(sentence, []).append(f'`{norm}`')
        return [f'{", ".join(of)}: {sentence}' for sentence, of in told.items()]


def still_to_run(
    runs: list[Run], records: dict[str, dict], configs: Configs, args: Namespace
) -> Iterator[Run]:
    """The runs without a result, or without the batch average that is asked for.

    Raises:
        InputError: A result is of a training with other settings.
    """
    for run in runs:
        record = records.get(run.name)
        begun = record or read_found(args.out / 'runs' / run.name)
        cfg = configs(run) if 'digest' in begun else None  # a run without one has no config
        if cfg is not None and begun['digest'] != digest(cfg):
            raise InputError(
                f'--out has a training of {run} with other settings: name another folder, or move '
                'this one away'
            )
        if record is None:
            yield run
        elif 'error' in record or 'batch_average_error' in record:
            if args.retry_failed:
                yield run
        elif args.batch_average and cfg is not None and has_average(cfg):
            if record.get('batch_average_iters') != args.batch_average:
                yield run


def failed_before(runs: list[Run], remaining: list[Run], records: dict[str, dict]) -> list[str]:
    """A line for each run that failed before and is not repeated: why it failed."""
    kept = [run.name for run in runs if run not in remaining]
    return [
        f'{name}: {records[name]["error"]} (of an earlier call; --retry-failed repeats it)'
        for name in kept
        if 'error' in records[name]
    ]


def describe_comparison(runs: list[Run], base: int, origin: str, cfg: Config) -> list[str]:
    """Says what will be trained, before it takes hours."""
    rate = cfg.optim_wrapper.optimizer.lr
    rates = {run.batch: f'{rate * run.batch / base:g} at {run.batch} images' for run in runs}
    return [
        f'{len(runs)} runs. Learning rate: {rate:g} for {base} images ({origin}), so '
        + ', '.join(rates.values()),
    ]


def describe_machine() -> str:
    described = describe(torch.device('cuda' if torch.cuda.is_available() else 'cpu'))
    name = described['cpu'] if described['device'] == 'cpu' else described['device']
    return (
        f'Measured on {name}, {described["cores"]} cores, torch {described["torch"]}, sn_mm '
        f'{described["sn_mm"]}, {described["date"]}.'
    )


def describe_report(
    args: Namespace, runs: int, base: int, origin: str, notes: list[str]
) -> dict[str, Any]:
    """What the report says besides the results."""
    memory = 'GPU' if torch.cuda.is_available() else 'Resident'
    quick = f'{Path(args.config).name}, --quick: the figures mean nothing'
    return {
        'config': quick if args.quick else args.config,
        'command': shlex.join([*sys.argv[0].split(), *sys.argv[1:]]),
        'machine': describe_machine(),
        'processes': args.processes,
        'base_batch': base,
        'base_from': origin,
        'notes': notes,
        'runs': runs,
        'memory': f'{memory} memory of the process that needs most; medians over the seeds.',
    }


def progress_bar() -> Progress:
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('left:'),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=Console(soft_wrap=True),
        speed_estimate_period=10**9,
    )


@contextmanager
def ending_runs_at_sigterm() -> Iterator[None]:
    """SIGTERM leaves by an exception, so that the runs at work are ended as well."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@report_input_errors
def run(args: Namespace) -> None:
    """Does the runs that have no result yet, and writes the report after each.

    Raises:
        InputError: Arguments or a config that no comparison can be made of.
    """
    complete(args)
    for norm in args.norms:
        norm_cfg_of(norm)
    cfg, held = load(args)
    metric = args.metric or METRICS.get(toolbox(cfg))
    if metric is None:
        raise InputError(f'--metric is needed for a config of {toolbox(cfg)}')
    if args.base_batch_size:
        base, origin = args.base_batch_size, '--base-batch-size'
    else:
        base, origin = base_batch_size(cfg, args.processes)
    runs = plan_runs(args.norms, args.processes, args.images, args.seeds)
    configs = Configs(cfg, base, args.norm_extent)
    records = finished(args.out)
    remaining = list(still_to_run(runs, records, configs, args))
    notes = configs.notes(args.norms)
    failed = failed_before(runs, remaining, records)
    print(*describe_comparison(runs, base, origin, cfg), *notes, *failed, sep='\n', flush=True)
    header = describe_report(args, len(runs), base, origin, notes)
    bar = progress_bar()
    names = [run.name for run in runs]
    runner = Runner(args.out, held, args.program, args.jobs, args.batch_average)
    with bar, ending_runs_at_sigterm():
        task = bar.add_task('runs', total=len(runs), completed=len(runs) - len(remaining))
        for record in runner.run(remaining, configs):
            records[record['name']] = record
            bar.advance(task)
            bar.console.print(_line(record, metric, bar.tasks[0].time_remaining))
            done = [records[name] for name in names if name in records]
            with suppress(InputError):  # the metric is missing, which is said at the end
                write_report(args.out, header, done, metric)
    done = [records[name] for name in names]
    write_report(args.out, header, done, metric)
    sentences = verdict(group(done, metric), args.processes, metric)
    print(header['config'], *sentences, args.out / 'README.md', sep='\n')


def _line(record: dict, metric: str, left: float | None) -> str:
    try:
        result = record.get('error') or f'{metric} {value_of(record, metric):.4g}'
    except InputError:
        result = f'no {metric}'
    time = '' if left is None else f', about {left / 60:.0f} min left'
    return f'{record["name"]}: {result} ({record["seconds"]:.0f} s{time})'
