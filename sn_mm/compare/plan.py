"""The runs of a comparison, and the config of each. All but the norm and the batch is equal."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from ..errors import InputError
from ..functional import SCOPES, canonical_normalizers
from ..switch import NothingToSwitch, SwitchReport, switch_config, switch_norm_cfg
from ..switch.importance import split_importance
from ..switch.nodes import type_name
from ..switch.option import parse_norm
from ..switch.target import check_target, is_sn
from .notes import notes_of

# Settings of a param_scheduler that are numbers of iterations if it has by_epoch=False.
_ITERATIONS = ('begin', 'end', 'T_max', 'step_size', 'total_steps', 'milestones', 'periods')
LOG_INTERVAL = 10


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        norm: The norm as ``--norm`` takes it, such as ``'SN sync=False'``.
        processes: Number of processes.
        images: Training images of each process in one iteration.
        seed: Of the initial weights and of the order and augmentation of the images.
    """

    norm: str
    processes: int
    images: int
    seed: int

    @property
    def batch(self) -> int:
        return self.processes * self.images

    @property
    def name(self) -> str:
        """The run's folder."""
        norm = re.sub(r'[^\w.=,-]+', '_', self.norm).strip('_')
        return f'{norm}-{self.processes}x{self.images}-seed{self.seed}'

    def __str__(self) -> str:
        return f'{self.norm}, {self.processes} x {self.images}, seed {self.seed}'


def plan_runs(norms: Sequence[str], processes: int, images: Sequence[int], seeds: int) -> list[Run]:
    """All runs, seed by seed, so that an unfinished comparison has each norm and batch.

    Raises:
        InputError: Two norms are written differently and have the same folder.
    """
    runs = [
        Run(norm, processes, count, seed)
        for seed in range(seeds)
        for count in dict.fromkeys(images)
        for norm in dict.fromkeys(norms)
    ]
    names = [run.name for run in runs]
    twice = next((run for run in runs if names.count(run.name) > 1), None)
    if twice:
        raise InputError(f'--norms has {twice.norm!r} and another spelling of the same norm')
    return runs


def norm_cfg_of(norm: str) -> dict:
    """The norm_cfg that a norm stands for on this machine.

    torch's SyncBatchNorm is for GPUs only. On the CPU its place is taken by SN over ``bn`` alone,
    synchronized: the same equations.

    Raises:
        InputError: As :func:`sn_mm.switch.option.parse_norm` and :func:`sn_mm.switch_norm_cfg`.
    """
    norm_cfg = _read(norm)
    if norm_cfg['type'] == 'SyncBN' and get_device() == 'cpu':
        norm_cfg.update(type='SN', normalizers=['bn'])
    return norm_cfg


def _read(norm: str) -> dict:
    norm_cfg = parse_norm(norm.split() or [''])
    layer_cfg, _ = split_importance(norm_cfg)
    return {**norm_cfg, **check_target(layer_cfg)}


def learns(norm: str) -> bool:
    """Whether a norm is SN over two scopes or three: over one it is that scope's own norm."""
    norm_cfg = _read(norm)
    return is_sn(norm_cfg) and len(canonical_normalizers(norm_cfg.get('normalizers', SCOPES))) > 1


def base_batch_size(cfg: Config, processes: int) -> tuple[int, str]:
    """The images of one iteration that a config's learning rate is for, and what says so.

    Raises:
        InputError: The config's auto_scale_lr, which it may have inherited, and its name disagree.
    """
    stated = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    # OpenMMLab's names of configs: 4xb2 is 4 GPUs of 2 images.
    named = re.search(r'(?<![a-z0-9])(\d+)xb(\d+)(?![0-9])', Path(cfg.filename or '').stem)
    count = int(named[1]) * int(named[2]) if named else None
    if named and stated not in (None, count):
        raise InputError(
            f"the config's learning rate is for {stated} images by its auto_scale_lr and for "
            f'{count} by its name, {named[0]}: --base-batch-size says which'
        )
    if stated:
        return stated, "the config's auto_scale_lr"
    if named and count:
        return count, f"the config's name, {named[0]}"
    return processes * cfg.train_dataloader.batch_size, (
        f"{processes} processes of the config's batch_size, for it has no auto_scale_lr and no "
        'NxbM in its name'
    )


def check_config(cfg: Config) -> None:
    """Refuses a config whose trainings could not be made equal.

    Raises:
        InputError: It has no plain learning rate or batch size, follows a validation, or was
            written by ``--norm``.
    """
    if not isinstance(cfg.train_dataloader, dict) or 'batch_size' not in cfg.train_dataloader:
        raise InputError('a comparison needs train_dataloader.batch_size in the config')
    if isinstance(sampler := cfg.train_dataloader.get('sampler'), dict) and 'batch_size' in sampler:
        raise InputError(
            'a comparison cannot change the batch of a train_dataloader.sampler with a batch_size '
            'of its own, as semi-supervised training has it'
        )
    if 'lr' not in cfg.optim_wrapper.get('optimizer', {}):
        raise InputError('a comparison needs optim_wrapper.optimizer.lr in the config, to scale it')
    if cfg.train_cfg.get('max_iters') is None and cfg.train_cfg.get('max_epochs') is None:
        raise InputError('a comparison needs train_cfg.max_iters or max_epochs in the config')
    if any('ReduceOnPlateau' in type_name(scheduler['type']) for scheduler in _schedulers(cfg)):
        raise InputError(
            'a comparison validates nothing in between: ReduceOnPlateau in param_scheduler, which '
            'follows a validation, cannot be compared with'
        )
    if 'switched' in cfg.model:
        raise InputError('the config was written by --norm: compare with the one it was made from')


def switch(cfg: Config, norm: str, extent: str) -> tuple[Config, list[str]]:
    """A copy of a config with all norms switched, those that were SN already included.

    Returns:
        The copy, and what the reader of the comparison should know of the norm.
    """
    switched = copy.deepcopy(cfg)
    try:
        before = switch_norm_cfg(switched, {'type': 'BN'})
    except NothingToSwitch:  # all of them are hard-coded
        before = SwitchReport()
    norm_cfg = norm_cfg_of(norm)
    report = switch_config(switched, norm_cfg, extent)
    return switched, notes_of(norm, norm_cfg, switched, before, report)


def run_config(switched: Config, run: Run, base_batch: int) -> Config:
    """The config of one run.

    The learning rate is scaled linearly with the batch. Whatever counts iterations is scaled the
    other way, so that each run sees the same number of images. Nothing is validated: the run is
    tested when its training is done.

    Args:
        switched: The config with the run's norm.
        run: The run.
        base_batch: The images of one iteration that the config is for.

    Returns:
        A new config.
    """
    cfg = copy.deepcopy(switched)
    ratio = run.batch / base_batch
    cfg.train_dataloader.batch_size = run.images
    cfg.optim_wrapper.optimizer.lr *= ratio
    cfg.auto_scale_lr = {**_settings(cfg.get('auto_scale_lr')), 'enable': False}
    cfg.param_scheduler = [_scale(scheduler, ratio) for scheduler in _schedulers(cfg)]
    if cfg.train_cfg.get('max_iters') is not None:
        cfg.train_cfg.max_iters = _iterations(cfg.train_cfg.max_iters, ratio)
    for part in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg.pop(part, None)
    for interval in ('val_interval', 'val_begin', 'dynamic_intervals'):
        cfg.train_cfg.pop(interval, None)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = {'type': 'CheckpointHook', **_settings(hooks.get('checkpoint'))}
    checkpoint.update(max_keep_ckpts=1, save_last=True)  # the last one is tested
    for key in ('save_best', 'out_dir'):
        checkpoint.pop(key, None)
    if checkpoint.get('by_epoch') is False and checkpoint.get('interval', -1) > 0:
        checkpoint['interval'] = _iterations(checkpoint['interval'], ratio)
    hooks.checkpoint = checkpoint
    logger = {'type': 'LoggerHook', **_settings(hooks.get('logger'))}
    hooks.logger = {**logger, 'interval': min(logger.get('interval', 10), LOG_INTERVAL)}
    cfg.randomness = {**_settings(cfg.get('randomness')), 'seed': run.seed}
    cfg.pop('work_dir', None)
    return cfg


def _schedulers(cfg: Config) -> list[dict]:
    schedulers = cfg.get('param_scheduler') or []
    return list(schedulers) if isinstance(schedulers, (list, tuple)) else [schedulers]


def _settings(config: dict | None) -> dict:
    """A copy of a part of a config, which does not import what a lazy config names."""
    return dict(dict.items(config or {}))


def _scale(scheduler: dict, ratio: float) -> dict:
    """A param_scheduler for a batch that is ``ratio`` times as large."""
    scaled = _settings(scheduler)
    for limit in ('eta_min', 'eta_max'):
        if limit in scaled and type_name(scheduler['type']).endswith('LR'):
            scaled[limit] *= ratio
    if scaled.get('by_epoch', True) is False:
        for key in _ITERATIONS:
            value = scaled.get(key)
            if isinstance(value, (list, tuple)):
                scaled[key] = [_iterations(count, ratio) for count in value]
            elif value:
                scaled[key] = _iterations(value, ratio)
    return scaled


def _iterations(count: int, ratio: float) -> int:
    return max(1, round(count / ratio))


def digest(cfg: Config) -> str:
    """A number that differs if any setting of a run's config does."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def settings_of(cfg: Config) -> dict[str, Any]:
    """What the report says about the training of a run."""
    return {
        'lr': cfg.optim_wrapper.optimizer.lr,
        'optimizer': type_name(cfg.optim_wrapper.optimizer.type),
        'max_iters': cfg.train_cfg.get('max_iters'),
        'max_epochs': cfg.train_cfg.get('max_epochs'),
    }
