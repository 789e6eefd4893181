"""One training by tools/train.py, in a work dir: started, killed, continued."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from sn_mm.errors import InputError

from .configs import ROOT

LIMIT = 900  # seconds after which a run counts as hanging


@dataclass
class Training:
    """A training by ``tools/train.py``, or by ``tools/dist_train.sh`` on several processes."""

    config: Path
    work_dir: Path
    processes: int

    def start(self) -> subprocess.Popen:
        """Starts a run, which resumes from the last checkpoint if there is one."""
        script = [sys.executable, str(ROOT / 'tools/train.py'), str(self.config)]
        if self.processes > 1:
            script = [str(ROOT / 'tools/dist_train.sh'), str(self.config), str(self.processes)]
        resume = ['--resume'] if (self.work_dir / 'last_checkpoint').exists() else []
        env = {**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)}
        env.setdefault('OMP_NUM_THREADS', '1')
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with open(self.output, 'ab') as output:
            return subprocess.Popen(
                [*script, '--work-dir', str(self.work_dir), *resume],
                env=env,
                stdout=output,
                stderr=output,
            )

    def finish(self) -> float:
        """Runs to the end of the training, and returns the seconds that took.

        Raises:
            InputError: The run failed or hangs.
        """
        begin = time.monotonic()
        process = self.start()
        try:
            self.check(process.wait(LIMIT))
        except subprocess.TimeoutExpired as error:
            raise InputError(f'a run hangs after {LIMIT} s: see {self.output}') from error
        finally:
            kill(process)
        return time.monotonic() - begin

    def check(self, status: int) -> None:
        """Checks the exit status of a run that was not killed.

        Raises:
            InputError: It is not 0.
        """
        if status:
            raise InputError(f'a run ended with status {status}: see {self.output}')

    @property
    def output(self) -> Path:
        """What all its runs printed."""
        return self.work_dir / 'output.txt'

    @property
    def checkpoints(self) -> list[Path]:
        return sorted(self.work_dir.glob('*.pth'))

    def writes_since(self, begin: float) -> set[int]:
        """Inodes of the checkpoints that are being written, or were when a run since was killed."""
        found = set()
        with os.scandir(self.work_dir) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    if entry.name.endswith('.pth.tmp') and entry.stat().st_mtime >= begin:
                        found.add(entry.inode())
        return found


def kill(process: subprocess.Popen) -> None:
    """Kills a run, all its processes: torchrun's ranks are sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    process.wait()
