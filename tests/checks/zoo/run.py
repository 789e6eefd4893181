"""Trains a step of configs side by side: ``python -m checks.zoo.run LOG CONFIG ...``.

Writes the record of each, a line of JSON, to the standard output and to the log. What the log has
of this version of the code, without an error, is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import torch
from checks.zoo.check import check_config
from checks.zoo.processes import Limits, run_tasks
from mmengine.utils import get_installed_path

import sn_mm
from sn_mm.output.files import append_record, read_records

TOOLBOXES = ('mmdet', 'mmseg')


def code_version(package: Path = Path(sn_mm.__file__).parent) -> str:
    """sn_mm's version and a digest of its code."""
    digest = hashlib.sha1()
    for file in sorted(package.rglob('*')):
        if file.suffix in ('.py', '.c'):
            digest.update(file.read_bytes())
    return f'{sn_mm.__version__}+{digest.hexdigest()[:8]}'


def find_configs() -> dict[str, Path]:
    """The configs that ship in the toolboxes, by the names that ``_base_`` has for them.

    One of each method comes first, then the next: a run that is stopped has met all methods.
    """
    configs = {}
    for toolbox in TOOLBOXES:
        root = Path(get_installed_path(toolbox)) / '.mim/configs'
        for file in sorted(root.rglob('*.py')):
            name = file.relative_to(root)
            if name.parts[0] != '_base_':  # parts of configs
                configs[f'{toolbox}::{name}'] = file
    names = random.Random(0).sample(list(configs), len(configs))
    turns: Counter[str] = Counter()
    order = {}
    for name in names:
        method = name.rpartition('/')[0]
        order[name] = turns[method]
        turns[method] += 1
    return {name: configs[name] for name in sorted(names, key=order.__getitem__)}


def finished(log: Path, version: str) -> dict[str, dict]:
    """The records of a log that need not be made again, by config."""
    records = read_records(log, 'config')
    return {n: r for n, r in records.items() if r['sn_mm'] == version and 'error' not in r}


def main() -> None:
    log, names = Path(sys.argv[1]), sys.argv[2:]
    configs, version = find_configs(), code_version()
    records = finished(log, version)
    for name in records.keys() & names:
        print(json.dumps(records[name]), flush=True)
    left = {name: configs[name] for name in names if name not in records}
    done = {r['digest']: r for r in records.values() if 'digest' in r}
    torch.set_num_threads(1)
    for toolbox in TOOLBOXES:
        import_module(f'{toolbox}.models')
    for fill in (torch.nn.init.normal_, torch.nn.init.trunc_normal_, torch.nn.init.uniform_):
        fill(torch.empty(2, 2, device='meta'))  # imports much the first time
    results = run_tasks(
        left,
        lambda name, progress: check_config(left[name], done, progress),
        os.cpu_count() or 1,
        Limits(),
    )
    for name, result in results:
        record = {'config': name, 'sn_mm': version, **result}
        if 'digest' in record and 'same_model_as' not in record:
            done[record['digest']] = record
        append_record(log, record)
        print(json.dumps(record), flush=True)


if __name__ == '__main__':
    main()
