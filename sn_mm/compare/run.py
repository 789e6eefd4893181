"""Does the runs of a comparison by the real commands, each in a folder of its own."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import torch
from mmengine.config import Config

from ..analysis import importance
from ..atomic import atomic_path
from ..checkpoints.read import read_checkpoint
from ..errors import InputError
from ..functional import canonical_normalizers
from ..output.files import append_record, read_records
from ..switch.toolbox import toolbox
from .notes import component_settings
from .plan import Run, digest, settings_of

_ERROR = re.compile(r'^(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$', re.M)
_REFUSED = re.compile(r'^sn-mm [\w-]+: error: (.*)$', re.M)


class RunFailed(Exception):
    """A command of a run ended with an error."""


class Runner:
    """Does the runs of a comparison, a number of them at a time.

    Args:
        out: Folder of the comparison: ``runs/NAME`` for each run, ``runs.jsonl`` with a line for
            each that is done.
        held: Its lock, from :func:`lock`.
        program: The words that start ``sn-mm``.
        jobs: Runs at a time. Default: 1.
        batch_average: Mini-batches for a second test with the batch average. Default: 0, none.
    """

    def __init__(
        self,
        out: Path,
        held: IO[str],
        program: Sequence[str],
        jobs: int = 1,
        batch_average: int = 0,
    ) -> None:
        self.out = out
        self.lock = held
        self.program = program
        self.jobs = jobs
        self.batch_average = batch_average
        self.slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(jobs):
            self.slots.put(slot)
        self.processes: set[subprocess.Popen] = set()
        self.stopping = False

    def run(self, runs: Sequence[Run], config_of: Callable[[Run], Config]) -> Iterator[dict]:
        """Does runs, and appends the record of each to ``runs.jsonl``.

        Args:
            runs: The runs.
            config_of: Gives the config of a run; an error of it is the result of the run.

        Yields:
            The records, in the order in which the runs end.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._run, run, config_of) for run in runs]
            try:
                for future in as_completed(futures):
                    record = future.result()
                    append_record(self.out / 'runs.jsonl', record)
                    yield record
            finally:
                self.stopping = True
                for future in futures:
                    future.cancel()
                for process in list(self.processes):
                    process.terminate()

    def _run(self, run: Run, config_of: Callable[[Run], Config]) -> dict:
        slot = self.slots.get()
        start = time.monotonic()
        record: dict[str, Any] = {'name': run.name, **asdict(run)}
        try:
            cfg = config_of(run)
            record.update(digest=digest(cfg), **settings_of(cfg))
            record.update(self._train_and_test(run, cfg, slot))
        except RunFailed as error:
            record['error'] = str(error)
        except Exception as error:  # a model that cannot be built is a result, too
            kind = '' if isinstance(error, InputError) else f'{type(error).__name__}: '
            record['error'] = f'{kind}{error}'.strip().splitlines()[0]
        finally:
            self.slots.put(slot)
        record['seconds'] = round(time.monotonic() - start, 1)
        return record

    def _train_and_test(self, run: Run, cfg: Config, slot: int) -> dict[str, Any]:
        folder = self.out / 'runs' / run.name
        folder.mkdir(parents=True, exist_ok=True)
        config, train = folder / 'config.py', folder / 'train'
        found = read_found(folder)
        if found.setdefault('digest', digest(cfg)) != digest(cfg):
            raise RunFailed(f'{folder} has a training with other settings: move it away')
        write_found(folder, found)
        cfg.dump(config)
        if 'checkpoint' not in found:
            resume = ['--resume'] if (train / 'last_checkpoint').is_file() else []
            peak = self._call(run, slot, 'train', ['train', config, '--work-dir', train, *resume])
            last = Path((train / 'last_checkpoint').read_text().strip())
            found.update(peak_memory_mib=peak, importance=read_importance(cfg, last))
            found.update(read_scalars(train), checkpoint=os.path.relpath(last, self.out))
            write_found(folder, found)
        checkpoint = self.out / found['checkpoint']
        if 'metrics' not in found:
            found['metrics'] = self._test(run, slot, config, checkpoint, 'test')
            write_found(folder, found)
        count = self.batch_average
        if count and has_average(cfg) and found.get('batch_average_iters') != count:
            found.pop('batch_average', None)
            try:
                found['batch_average'] = self._average(run, slot, config, checkpoint)
                found['batch_average_iters'] = count
                write_found(folder, found)
            except RunFailed as error:  # the run keeps its other results
                found['batch_average_error'] = str(error)
        return found

    def _average(self, run: Run, slot: int, config: Path, checkpoint: Path) -> dict:
        """Tests with the batch average, measured on all processes as the training was."""
        averaged = config.parent / 'batch_average.pth'
        command = ['batch-average', config, checkpoint, averaged]
        options = ['--bn', '--num-iters', self.batch_average]
        self._call(run, slot, 'batch_average', [*command, *options])
        return self._test(run, slot, config, averaged, 'test_average')

    def _test(self, run: Run, slot: int, config: Path, checkpoint: Path, name: str) -> dict:
        folder = config.parent / name
        self._call(run, slot, name, ['test', config, checkpoint, '--work-dir', folder])
        return json.loads((folder / 'metrics.json').read_text())

    def _call(self, run: Run, slot: int, name: str, command: Sequence[object]) -> float:
        """Runs a command on the run's processes, with its log in the run's folder.

        Returns:
            The largest memory of one of its processes, in MiB.

        Raises:
            RunFailed: It ended with an error; the message is its last line.
        """
        if self.stopping:
            raise RunFailed('stopped')
        log = self.out / 'runs' / run.name / f'{name}.log'
        with log.open('w') as file:
            process = subprocess.Popen(
                [*self.program, *map(str, command), '--processes', str(run.processes)],
                env=environment(slot, run.processes, self.jobs),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[self.lock.fileno()],  # the command holds the lock, too
            )
            self.processes.add(process)
            try:
                _, status, usage = os.wait4(process.pid, 0)
            finally:
                self.processes.discard(process)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        if code != 0:
            raise RunFailed(reason_of(log.read_text(errors='replace'), code))
        return round(usage.ru_maxrss / 1024, 1)


def lock(out: Path) -> IO[str]:
    """Makes a folder and locks it for as long as the file that this returns is open anywhere.

    Raises:
        InputError: Another comparison, or a script that one left when it was killed, is at work.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = (out / '.lock').open('w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f'another comparison, or a training that one left, is at work in {out}: wait for it, '
            'or end it'
        ) from None
    return file


def environment(slot: int, processes: int, jobs: int) -> dict[str, str]:
    """The environment of a run, with threads and GPUs of its own; its commands take a free port.

    Args:
        slot: Number of the run among those that run at the same time.
        processes: Number of its processes.
        jobs: Runs at a time.
    """
    threads = str(max(1, (os.cpu_count() or 1) // (processes * jobs)))
    variables = {'OMP_NUM_THREADS': threads, **os.environ}
    variables.pop('PORT', None)
    if jobs > 1 and torch.cuda.is_available():
        gpus = range(slot * processes, (slot + 1) * processes)
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        names = visible.split(',') if visible else [str(n) for n in range(max(gpus) + 1)]
        variables['CUDA_VISIBLE_DEVICES'] = ','.join(names[n] for n in gpus)
    return variables


def reason_of(log: str, code: int) -> str:
    """The line of a log that says why a command failed."""
    refused = _REFUSED.findall(log)
    if refused:
        return refused[-1]
    errors = [line for line in _ERROR.findall(log) if 'ChildFailedError' not in line]
    if errors:
        return errors[0]
    signals = re.findall(r'exitcode\s*: -(\d+)', log)
    if signals or code < 0:
        number = int(signals[0]) if signals else -code
        return f'ended by {signal.Signals(number).name}'
    return f'ended with exit status {code}'


def read_scalars(work_dir: Path) -> dict[str, Any]:
    """Seconds per iteration, the last loss, and on a GPU the peak memory, from a training's log.

    The loss is None where it is not finite; a training too short to be logged has neither.
    """
    lines: list[dict] = []
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    logged = [line for line in lines if 'time' in line and 'loss' in line]
    if not logged:
        return {'seconds_per_iteration': None}
    found = {
        'seconds_per_iteration': statistics.median(line['time'] for line in logged[1:] or logged),
        'loss': logged[-1]['loss'] if math.isfinite(logged[-1]['loss']) else None,
    }
    memory = [line['memory'] for line in logged if 'memory' in line]
    return {**found, 'peak_memory_mib': max(memory)} if memory else found


def read_importance(cfg: Config, checkpoint: Path) -> dict[str, dict[str, float]] | None:
    """The importance averaged over all layers; None without SN."""
    norms = (norm for norm, _ in _norms(cfg.model, {}))
    given = next((n['normalizers'] for n in norms if n.get('normalizers')), None)
    normalizers = None if given is None else list(canonical_normalizers(given))
    if normalizers == ['bn']:
        return None
    weights = read_checkpoint(str(checkpoint))['state_dict']
    layers = importance.from_state_dict(weights, normalizers)
    return importance.average(layers.values()) if layers else None


def has_average(cfg: Config) -> bool:
    """Whether a model measures running statistics in training, which a batch average replaces."""
    for norm, owner in _norms(cfg.model, {}):
        kind = norm['type']
        if kind.startswith(('GN', 'IN')) or norm.get('track_running_stats') is False:
            continue
        if 'SN' in kind:
            if 'bn' in (norm.get('normalizers') or ['bn']):
                return True
        elif not (owner and component_settings(owner, toolbox(cfg)).get('norm_eval')):
            return True
    return False


def _norms(config: Any, owner: dict) -> Iterator[tuple[dict, dict]]:
    """Each norm_cfg of a model's config, with the component that has it."""
    if isinstance(config, dict):
        if re.fullmatch(r'(sn_mm\.)?(S?SN|BN|IN)([123]d)?|SyncBN|GN', str(config.get('type', ''))):
            yield config, owner
        elif 'type' in config:
            owner = config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _norms(value, owner)


def read_found(folder: Path) -> dict[str, Any]:
    """What a run's commands have found so far, so that none of them runs twice."""
    file = folder / 'found.json'
    return json.loads(file.read_text()) if file.is_file() else {}


def write_found(folder: Path, found: dict[str, Any]) -> None:
    """Writes the file that :func:`read_found` reads."""
    with atomic_path(folder / 'found.json') as path:
        path.write_text(json.dumps(found))


def finished(out: Path) -> dict[str, dict]:
    """The records of the runs that are done, by name; also of a comparison of version 1.0."""
    log, old = out / 'runs.jsonl', out / 'cells.jsonl'
    return read_records(old if old.is_file() else log, 'name')
