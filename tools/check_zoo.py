"""Trains one step of every ready-made config of mmdet and mmseg with SN in place of its norms.

    python tools/check_zoo.py --jobs 2                 # all of them; continues where it was stopped
    python tools/check_zoo.py --build-only             # quickly, without the step
    python tools/check_zoo.py --retry-failed           # those that ended in an error again
    python tools/check_zoo.py --sample 12 --seed 0     # some of them

Each config is loaded, built with its own norms, switched (`sn_mm.switch_norm_cfg`), built with SN,
relieved of the norms that no config can reach (`sn_mm.convert_switch_norm`, as tools/train.py does)
and trained for one step on two made-up images. Results are appended to a file of JSON lines, and
summed up in zoo.json and README.md: in docs/zoo, those of a part beside the log, unless --out
names a folder. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # forked processes have no use for threads

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import sn_mm
from sn_mm.benchmark.configs import mim_folder
from sn_mm.cli.errors import report_input_errors
from sn_mm.cli.files import read_records
from sn_mm.errors import InputError, check_positive_int
from zoo.check import check_config
from zoo.processes import Limits, run_tasks
from zoo.table import category, write_report

TOOLBOXES = ('mmdet', 'mmseg')
RECORD = Path(__file__).parents[1] / 'docs' / 'zoo'


def parse_args() -> argparse.Namespace:
    limits = Limits()
    parser = argparse.ArgumentParser(
        description='Train one step of every ready-made config with SN.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--toolbox', nargs='+', choices=TOOLBOXES, default=TOOLBOXES)
    parser.add_argument('--only', nargs='+', metavar='PATTERN', help='such as "mmdet::atss/*"')
    parser.add_argument('--sample', type=int, metavar='N', help='N configs drawn at random')
    parser.add_argument('--seed', type=int, default=0, help='of the sample')
    parser.add_argument(
        '--max-seconds',
        type=float,
        metavar='S',
        help='only configs that took at most S in docs/zoo/zoo.json',
    )
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes at a time')
    parser.add_argument('--cpu-limit', type=int, default=limits.cpu_seconds, metavar='S')
    parser.add_argument('--memory-limit', type=float, default=limits.memory_gib, metavar='GIB')
    parser.add_argument('--log', type=Path, default=Path('work_dirs/zoo/zoo.jsonl'))
    parser.add_argument(
        '--out', type=Path, help='folder of the report; docs/zoo, of a part that of --log'
    )
    parser.add_argument('--build-only', action='store_true', help='do not train a step')
    parser.add_argument(
        '--retry-failed', action='store_true', help='run configs that ended in an error again'
    )
    parser.add_argument(
        '--keep-older', action='store_true', help="keep results of other versions of sn_mm's code"
    )
    args = parser.parse_args()
    check_positive_int('--jobs', args.jobs)
    part = args.only or args.sample is not None or args.max_seconds is not None or args.build_only
    is_all = not part and set(args.toolbox) == set(TOOLBOXES)
    args.out = args.out or (RECORD if is_all else args.log.parent)
    return args


def code_version() -> str:
    """sn_mm's version and a digest of its code."""
    root = Path(sn_mm.__file__).parent
    digest = hashlib.sha1()
    for file in sorted(root.rglob('*.py')):
        digest.update(file.read_bytes())
    return f'{sn_mm.__version__}+{digest.hexdigest()[:8]}'


def find_configs(toolboxes: list[str]) -> dict[str, Path]:
    """The configs that ship in toolboxes, by the names that ``_base_`` has for them."""
    configs = {}
    for toolbox in toolboxes:
        root = mim_folder(toolbox) / 'configs'
        for file in sorted(root.rglob('*.py')):
            name = file.relative_to(root)
            if name.parts[0] != '_base_':  # parts of configs
                configs[f'{toolbox}::{name}'] = file
    return configs


def choose(names: list[str], args: argparse.Namespace) -> list[str]:
    """The configs that the command line asks for."""
    if args.only:
        names = [n for n in names if any(fnmatch.fnmatch(n, p) for p in args.only)]
        if not names:
            raise InputError(f'--only {" ".join(args.only)}: no config of this name')
    if args.max_seconds is not None:
        seconds = recorded_seconds(RECORD / 'zoo.json')
        names = [n for n in names if seconds.get(n, args.max_seconds + 1) <= args.max_seconds]
    if args.sample is not None:
        names = random.Random(args.seed).sample(names, min(args.sample, len(names)))
    return names


def recorded_seconds(file: Path) -> dict[str, float]:
    """Processor time of each config that an earlier run's report has whole, not killed."""
    if not file.is_file():
        raise InputError(f'--max-seconds needs the times of an earlier run in {file}')
    records = {r['config']: r for r in json.loads(file.read_text())['configs']}
    seconds = {
        name: records.get(record.get('same_model_as'), record).get('cpu_s')
        for name, record in records.items()
        if record['status'] != 'built'
    }
    return {name: time for name, time in seconds.items() if time is not None}


def in_turn(names: list[str]) -> list[str]:
    """One config of each method, then the next: a partial run covers all methods."""
    names = random.Random(0).sample(names, len(names))
    turns: Counter[str] = Counter()
    order = {}
    for name in names:
        method = name.rpartition('/')[0]
        order[name] = turns[method]
        turns[method] += 1
    return sorted(names, key=order.__getitem__)


@report_input_errors
def main() -> None:
    args = parse_args()
    configs = find_configs(args.toolbox)
    names = choose(list(configs), args)
    version = code_version()
    records = read_records(args.log, 'config')
    if not args.keep_older:
        records = {n: r for n, r in records.items() if r['sn_mm'] == version}
    if args.retry_failed:
        records = {n: r for n, r in records.items() if 'error' not in r}
    if not args.build_only:
        records = {n: r for n, r in records.items() if r['status'] != 'built'}
    records = {n: r for n, r in records.items() if n in names}
    done = {r['digest']: r for r in records.values() if 'digest' in r and r['sn_mm'] == version}

    torch.set_num_threads(1)
    for toolbox in args.toolbox:
        import_module(f'{toolbox}.models')
    for fill in (torch.nn.init.normal_, torch.nn.init.trunc_normal_, torch.nn.init.uniform_):
        fill(torch.empty(2, 2, device='meta'))  # imports much the first time
    args.log.parent.mkdir(parents=True, exist_ok=True)
    bar = Progress(
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )
    failures = 0
    with args.log.open('a') as log, bar:
        task = bar.add_task('configs', total=len(names), completed=len(records))
        left = in_turn([name for name in names if name not in records])
        results = run_tasks(
            left,
            lambda name, progress: check_config(configs[name], done, not args.build_only, progress),
            args.jobs,
            Limits(cpu_seconds=args.cpu_limit, memory_gib=args.memory_limit),
        )
        for name, result in results:
            record = records[name] = {'config': name, 'sn_mm': version, **result}
            if 'digest' in record and 'same_model_as' not in record:
                done[record['digest']] = record
            log.write(json.dumps(record) + '\n')
            log.flush()
            if category(record).is_failure:
                failures += 1
                bar.print(f'{name}: {category(record).text}: {record.get("error", "")}')
            bar.update(task, advance=1, description=f'configs ({failures} failed)')
    print(write_report(args.out, [records[n] for n in names]), f'Written to {args.out}', sep='\n')
    if any(category(r).is_failure for r in records.values()):
        sys.exit(1)


if __name__ == '__main__':
    main()
