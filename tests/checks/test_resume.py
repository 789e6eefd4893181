"""Trainings that are killed at random moments and resumed end as if they had not been.

    bash tools/run_tests.sh tests/checks/test_resume.py --kills 20 --record

Small real models of MMSegmentation and MMDetection train through tools/train.py, on two processes
through tools/dist_train.sh. SIGKILL ends all their processes, every second time while a checkpoint
is being written. After each kill every checkpoint must be complete; at the end weights, buffers,
optimizer and schedules must equal those of an undisturbed run bit for bit.

``-m every_command`` kills a short training once, on one process. An ordinary run of the tests has
test_resumable_checkpoint.py and test_train.py, which kill trainings of tiny models.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_runs import LIMIT, ROOT, TOOLS, assert_same, kill_tree, succeed

from sn_mm.checkpoints.read import read_checkpoint
from sn_mm.cli.checkpoint import check_checkpoint
from sn_mm.errors import InputError
from sn_mm.output.markdown import markdown_table
from sn_mm_cli import PROGRAM

from .record import machine, write_record

MODELS = {  # each needs its toolbox
    'segmentation': ('mmseg', 'deeplabv3plus_r18-d8-sn_2xb2-150_scenes'),
    'detection': ('mmdet', 'mask-rcnn_r18-sn_fpn_2xb2-3e_scenes'),
}
MOMENTS = ('starting', 'training', 'writing')
POLL = 0.0005  # seconds; writing a checkpoint takes tens of milliseconds


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'processes' in metafunc.fixturenames:
        runs = [pytest.param('segmentation', 1, marks=pytest.mark.every_command)]
        if metafunc.config.getoption('kills'):
            runs = [pytest.param(model, processes) for model in MODELS for processes in (1, 2)]
        metafunc.parametrize(('model', 'processes'), runs)


@dataclass
class Training:
    """A training in a work dir, whose runs are killed and continued."""

    config: Path
    work_dir: Path
    processes: int

    @property
    def output(self) -> Path:
        """What all its runs printed."""
        return self.work_dir / 'output.txt'

    def start(self) -> subprocess.Popen:
        """Starts a run, which resumes from the last checkpoint if there is one."""
        script = [sys.executable, str(TOOLS / 'train.py'), str(self.config)]
        if self.processes > 1:
            script = [str(TOOLS / 'dist_train.sh'), str(self.config), str(self.processes)]
        resume = ['--resume'] if (self.work_dir / 'last_checkpoint').exists() else []
        env = {**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
        env.setdefault('OMP_NUM_THREADS', '1')
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with open(self.output, 'ab') as output:
            command = [*script, '--work-dir', str(self.work_dir), *resume]
            return subprocess.Popen(command, env=env, stdout=output, stderr=output)

    def finish(self) -> float:
        """Runs to the end of the training, and returns the seconds that took."""
        begin = time.monotonic()
        process = self.start()
        try:
            self.check(process.wait(LIMIT))
        finally:
            kill_tree(process)
        return time.monotonic() - begin

    def check(self, status: int) -> None:
        assert status == 0, self.output.read_text(errors='replace')[-4000:]

    def kill(self, rng: random.Random, seconds: float, writing: bool) -> str:
        """Starts a run and kills it at a moment within ``seconds``, or while it writes.

        Returns:
            One of :data:`MOMENTS`; '' if the run reached the end of the training before.
        """
        before = self.output.stat().st_size if self.output.exists() else 0
        delay, writes_to_see = rng.uniform(0, seconds), rng.randint(1, 5)
        begin, clock = time.time(), time.monotonic()
        process = self.start()
        seen: set[int] = set()
        try:
            while process.poll() is None:
                seen |= self.writes_since(begin)
                if len(seen) >= writes_to_see if writing else time.monotonic() - clock > delay:
                    break
                time.sleep(POLL)
            else:
                self.check(process.returncode)
                return ''
        finally:
            kill_tree(process)
        if self.writes_since(begin):
            return 'writing'
        return 'training' if b'(train)' in self.output.read_bytes()[before:] else 'starting'

    def writes_since(self, begin: float) -> set[int]:
        """Inodes of the checkpoints that are being written, or were when a run since was killed."""
        found = set()
        with os.scandir(self.work_dir) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    if entry.name.endswith('.pth.tmp') and entry.stat().st_mtime >= begin:
                        found.add(entry.inode())
        return found


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images and labels that both models train on."""
    folder = tmp_path_factory.mktemp('scenes')
    options = '--layout coco cityscapes --size 128 --digits 2 4 --train 16 --val 4'
    succeed(folder, *PROGRAM, 'make-scenes', folder / 'scenes', *options.split())
    return folder / 'scenes'


@pytest.fixture(scope='module')
def rows(request: pytest.FixtureRequest) -> Iterator[list[list[str]]]:
    """The record: a row of each model and number of processes."""
    rows: list[list[str]] = []
    yield rows
    if rows and request.config.getoption('record'):
        head = ['model', 'processes', 'kills', *MOMENTS, 'trainings that ended equal']
        write_record('resume.md', 'kills', f'{markdown_table(head, rows)}\n\n{machine()}.')


def write_config(model: str, short: bool, scenes: Path, path: Path) -> None:
    """Writes the config of a training that validates and saves often.

    Segmentation goes by iterations and has dropout; detection goes by epochs, its workers live on
    between them, and its heads sample at random. Both augment at random.
    """
    toolbox, name = MODELS[model]
    pytest.importorskip(toolbox)
    os.environ['SCENES'] = str(scenes)
    cfg = Config.fromfile(ROOT / f'configs/demo/{name}.py')
    saving = cfg.default_hooks.checkpoint
    saving.max_keep_ckpts = 2
    if model == 'segmentation':
        cfg.train_cfg.update(max_iters=8 if short else 48, val_interval=4 if short else 16)
        saving.update(interval=2, save_best='mIoU')
    else:
        cfg.train_cfg.update(max_epochs=8, val_interval=3)
        saving.update(interval=1, save_best='coco/bbox_mAP')
        cfg.train_dataloader.dataset.pipeline.insert(2, {'type': 'PhotoMetricDistortion'})
        cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    cfg.default_hooks.logger.interval = 1
    cfg.randomness = {'seed': 0}
    cfg.dump(path)


@pytest.mark.timeout(0)  # each run has a limit of its own
def test_a_killed_training_ends_as_an_undisturbed_one(
    model: str,
    processes: int,
    scenes: Path,
    rows: list[list[str]],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    """Every second kill waits until a checkpoint is being written, the others come at any moment.

    A training that ends before it is killed is compared, and the next begins.
    """
    asked = pytestconfig.getoption('kills')
    rng = random.Random(0)
    config = tmp_path / 'config.py'
    write_config(model, not asked, scenes, config)
    undisturbed = Training(config, tmp_path / 'undisturbed', processes)
    seconds = undisturbed.finish()
    moments: list[str] = []
    ended = 0
    while len(moments) < (asked or 1):
        training = Training(config, tmp_path / f'killed-{ended}', processes)
        moment = training.kill(rng, seconds, writing=len(moments) % 2 == 0)
        if moment:
            moments.append(moment)
            check_checkpoints(training.work_dir)
        else:
            compare(undisturbed.work_dir, training.work_dir)
            ended += 1
    training.finish()
    compare(undisturbed.work_dir, training.work_dir)
    numbers = [processes, len(moments), *map(moments.count, MOMENTS), ended + 1]
    rows.append([model, *map(str, numbers)])


def check_checkpoints(work_dir: Path) -> None:
    """Whether what a kill left under the names of checkpoints is complete."""
    for path in work_dir.glob('*.pth'):
        check_checkpoint(str(path))


def compare(undisturbed: Path, killed: Path) -> None:
    """Whether the last checkpoints are the same bit for bit."""
    name = Path((undisturbed / 'last_checkpoint').read_text()).name
    one, other = (read_checkpoint(str(folder / name)) for folder in (undisturbed, killed))
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(one[part], other[part])


def save(folder: Path, weight: float) -> Path:
    folder.mkdir()
    parts = {'state_dict': {'weight': torch.tensor([weight])}, 'optimizer': {}}
    torch.save({**parts, 'param_schedulers': [{'last_step': 3}]}, folder / 'iter_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_1.pth'))
    return folder


def test_one_bit_of_one_weight_is_a_fault(tmp_path: Path) -> None:
    one = save(tmp_path / 'one', 1.0)
    compare(one, save(tmp_path / 'same', 1.0))
    with pytest.raises(AssertionError):
        compare(one, save(tmp_path / 'other', 1.0 + 2.0**-23))


def test_half_a_checkpoint_is_a_fault(tmp_path: Path) -> None:
    folder = save(tmp_path / 'killed', 1.0)
    check_checkpoints(folder)
    file = folder / 'iter_1.pth'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError):
        check_checkpoints(folder)
