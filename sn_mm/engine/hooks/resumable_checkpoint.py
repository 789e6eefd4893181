"""Checkpoints that survive a kill at any moment, and from which training goes on exactly."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...errors import InputError
from ..resume.atomic_backend import AtomicBackend
from ..resume.random_states import get_random_states, set_random_states
from ..resume.worker_seeds import WorkerSeeds


class ResumableCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, safe against a kill or a full disk, and exact on resuming.

    Takes the arguments of :class:`mmengine.hooks.CheckpointHook`, and saves what it saves. Besides:

    - A checkpoint in a local folder is written to ``<name>.tmp``, and renamed once it is on the
      disk. ``last_checkpoint`` names it after that, and outdated checkpoints are deleted last, also
      that of ``save_best``. A ``*.pth.tmp`` that a killed run left is deleted when the next begins.
    - ``meta.random_states`` holds Python's, NumPy's and torch's random states on every rank. They
      are set when a resumed training has skipped the data that was trained on. Validation leaves
      them as they were.
    - In epoch-based training with workers, their augmentation depends on seed, rank, worker and
      epoch only; see :class:`sn_mm.engine.resume.worker_seeds.WorkerSeeds`.

    Raises:
        InputError: A checkpoint could not be written; on every rank.
    """

    file_backend: Any
    keep_ckpt_ids: deque[int]
    _random_states: dict[str, Any] | None = None  # of the training, while it validates
    _resumed_states: dict[str, Any] | None = None
    _worker_seeds: WorkerSeeds | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        states = checkpoint['meta'].get('random_states') if 'meta' in checkpoint else None
        if not runner._resume or states is None:
            return
        if len(states) != get_world_size():
            print_log(
                f'The checkpoint has the random states of {len(states)} processes, this run has '
                f'{get_world_size()}, and starts with new ones.',
                'current',
                logging.WARNING,
            )
        else:
            self._resumed_states = states[get_rank()]

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend and self.file_client_args is None:
            self.backend_args = {'backend': 'sn_mm.atomic'}
            self.file_backend = AtomicBackend()
            if is_main_process():
                for left in Path(self.out_dir).glob('*.pth.tmp'):  # by a run that was killed
                    left.unlink()
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            if self._resumed_states and hasattr(loop, 'dataloader_iterator'):
                loop.dataloader_iterator = _Skippable(
                    self._restored_after(loop.dataloader_iterator, runner.iter)
                )
            return
        if not self.by_epoch:
            print_log(
                'Checkpoints within an epoch: a resumed run begins its epoch anew, and trains on '
                'some images once more.',
                'current',
                logging.WARNING,
            )
        if loop.dataloader.num_workers and runner.seed is not None:
            self._worker_seeds = WorkerSeeds(loop.dataloader, runner.seed, get_rank())

    def before_train_epoch(self, runner: Runner) -> None:
        if self._worker_seeds:
            self._worker_seeds.epoch = runner.epoch
        # The first iterator of a loader draws a seed for its workers. An undisturbed training draws
        # it each epoch, or once if workers persist: then the states follow in before_train_iter.
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop) and not loop.dataloader.persistent_workers:
            self._restore()

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        self._restore()

    def before_val(self, runner: Runner) -> None:
        self._random_states = get_random_states()

    def after_val(self, runner: Runner) -> None:
        if self._random_states is not None:
            set_random_states(self._random_states)
            self._random_states = None

    def _restore(self) -> None:
        if self._resumed_states is not None:
            set_random_states(self._resumed_states)
            self._resumed_states = None

    def _restored_after(self, iterator: Iterator, skipped: int) -> Iterator:
        """The same mini-batches, with the random states set when so many of them are skipped."""
        for _ in range(skipped):
            yield next(iterator)
        self._restore()
        yield from iterator

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            steps = [*(kept for kept in self.keep_ckpt_ids if kept != step), step]
            outdated = steps[: -self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(steps, self.max_keep_ckpts)
            # With the outdated ones, which a resumed training deletes if a kill leaves them.
            runner.message_hub.update_info('keep_ckpt_ids', steps)
        meta['random_states'] = all_gather_object(self._random_states or get_random_states())
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        with _on_all_ranks():
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                AtomicBackend().put_text(self.last_ckpt, Path(runner.work_dir) / 'last_checkpoint')
                for old in outdated:
                    path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old))
                    _remove(self.file_backend, path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removal_postponed():
            super()._save_best_checkpoint(_Saving(runner), metrics)

    @contextmanager
    def _removal_postponed(self) -> Iterator[None]:
        """Deletes at the end, and only if nothing failed, the files that the body deletes."""
        backend = self.file_backend
        self.file_backend = postponed = _Postponed(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        best = [getattr(self, 'best_ckpt_path', None)]
        best.extend(getattr(self, 'best_ckpt_path_dict', {}).values())
        for path in postponed.removed:
            if path not in best:  # the same step may be the best twice
                _remove(backend, path)


@contextmanager
def _on_all_ranks() -> Iterator[None]:
    """Raises the body's error on its rank, and an :class:`InputError` of it on all others."""
    error = None
    try:
        yield
    except Exception as raised:  # else the other ranks would wait for this one
        error = raised
    said = all_gather_object(error and (str(error) or repr(error)))
    if any(said):
        raise error or InputError(next(filter(None, said)))


class _Saving:
    """A runner whose ``save_checkpoint``, which rank 0 runs, fails on every rank or on none."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with _on_all_ranks():
            self._runner.save_checkpoint(*args, **kwargs)


class _Skippable:
    """Mini-batches, of which later versions of MMEngine skip some by ``skip_iter``.

    What is skipped is loaded all the same, so that the random states come to where they were.
    """

    def __init__(self, batches: Iterator) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator:
        return self._batches

    def __next__(self) -> Any:
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        for _ in range(num_iters):
            next(self._batches)


class _Postponed:
    """A file backend that notes the files to delete."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.removed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.removed.append(path)

    rmtree = remove


def _remove(backend: Any, path: str) -> None:
    """Deletes a checkpoint if it exists; DeepSpeed and FSDP write a folder."""
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):
        backend.rmtree(path)
