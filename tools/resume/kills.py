"""Kills at random moments, and what they may not change."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sn_mm.cli.checkpoint import check_checkpoint, read_checkpoint
from sn_mm.errors import InputError

from .training import Training, kill

POLL = 0.0005  # seconds; writing a checkpoint takes tens of milliseconds
PARTS = ('state_dict', 'optimizer', 'param_schedulers')


@dataclass
class Record:
    """The kills of one kind of training.

    Args:
        name: The training.
        processes: Their number.
    """

    name: str
    processes: int
    moments: Counter[str] = field(default_factory=Counter)
    trainings: int = 0
    tensors: int = 0
    faults: list[str] = field(default_factory=list)

    def kills(self) -> int:
        return sum(self.moments.values())

    def row(self) -> str:
        """A row of the table, under :data:`HEAD`."""
        moments = (str(self.moments[m]) for m in ('starting', 'training', 'writing'))
        same = f'{self.tensors} tensors equal' if not self.faults else '; '.join(self.faults)
        cells = [self.name, str(self.processes), str(self.kills()), *moments]
        return f'| {" | ".join([*cells, str(self.trainings), same])} |'


HEAD = """| model | processes | kills | starting | training | writing | trainings ended | compared |
|---|---|---|---|---|---|---|---|"""


def endure(
    name: str, config: Path, work_dir: Path, processes: int, kills: int, rng: random.Random
) -> Record:
    """Kills a training again and again, and compares its end with that of an undisturbed one.

    Every second kill waits until a checkpoint is being written, the others come at any moment from
    the start of the process to its expected end. A training that ends before it is killed is
    compared, and the next begins.

    Args:
        name: For the record.
        config: The config.
        work_dir: A new folder.
        processes: Number of processes.
        kills: Number of kills.
        rng: Chooses the moments.

    Returns:
        The record, with a fault for each difference.

    Raises:
        InputError: A run failed or hangs.
    """
    record = Record(name, processes)
    undisturbed = Training(config, work_dir / 'undisturbed', processes)
    seconds = undisturbed.finish()
    training = Training(config, work_dir / 'killed-0', processes)
    while record.kills() < kills:
        writing = record.kills() % 2 == 1
        moment = _kill(training, rng, seconds, writing)
        if moment:
            record.moments[moment] += 1
            record.faults.extend(find_damaged(training))
            print(f'{name} on {processes}: kill {record.kills()}, {moment}', flush=True)
        else:
            compare(undisturbed, training, record)
            number = record.trainings
            training = Training(config, work_dir / f'killed-{number}', processes)
    training.finish()
    compare(undisturbed, training, record)
    return record


def _kill(training: Training, rng: random.Random, seconds: float, writing: bool) -> str | None:
    """Starts a run and kills it; says in which state, or nothing if it ended before."""
    before = training.output.stat().st_size if training.output.exists() else 0
    delay, writes_to_see = rng.uniform(0, seconds), rng.randint(1, 5)
    begin, clock = time.time(), time.monotonic()
    process = training.start()
    seen: set[int] = set()
    try:
        while process.poll() is None:
            seen |= training.writes_since(begin)
            if len(seen) >= writes_to_see if writing else time.monotonic() - clock > delay:
                break
            time.sleep(POLL)
        else:
            training.check(process.returncode)
            return None
    finally:
        kill(process)
    if training.writes_since(begin):
        return 'writing'
    printed = training.output.read_bytes()[before:]
    return 'training' if b'(train)' in printed else 'starting'


def find_damaged(training: Training) -> list[str]:
    """The error of each checkpoint that a kill left incomplete under its name."""
    faults = []
    for path in training.checkpoints:
        try:
            check_checkpoint(str(path))
        except InputError as error:
            faults.append(str(error))
    return faults


def compare(undisturbed: Training, training: Training, record: Record) -> None:
    """Compares the last checkpoints bit for bit: weights, buffers, optimizer, schedulers."""
    name = (undisturbed.work_dir / 'last_checkpoint').read_text().rsplit('/')[-1]
    one, other = (
        read_checkpoint(str(folder / name)) for folder in (undisturbed.work_dir, training.work_dir)
    )
    record.trainings += 1
    different = []
    for part in PARTS:
        ours, theirs = dict(_leaves(one[part], part)), dict(_leaves(other[part], part))
        record.tensors += len(ours)
        different += sorted(ours.keys() ^ theirs.keys())
        different += [
            key for key in ours.keys() & theirs.keys() if not _same(ours[key], theirs[key])
        ]
    if different:
        record.faults.append(
            f'{training.work_dir}: {len(different)} values differ ({different[0]}, ...)'
        )


def _leaves(node: object, name: str) -> list[tuple[str, object]]:
    if isinstance(node, dict):
        pairs = list(node.items())
    elif isinstance(node, (list, tuple)):
        pairs = list(enumerate(node))
    else:
        return [(name, node)]
    return [leaf for key, value in pairs for leaf in _leaves(value, f'{name}.{key}')]


def _same(one: object, other: object) -> bool:
    if torch.is_tensor(one) and torch.is_tensor(other):
        return torch.equal(one, other)
    return one == other
