"""Trains a model of MMDetection, MMSegmentation or another MMEngine toolbox; SN is registered."""

from __future__ import annotations

from argparse import Namespace

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner

from ..analysis.importance import describe, from_model
from ..checkpoints.read import weights_of
from ..engine.importance_constructor import LR_MULT
from ..engine.unwrap import unwrap
from ..errors import InputError
from ..model.names import name_layers
from ..optim import names_importance
from ..sharding import full_weights
from ..switch.components import resolve
from ..switch.nodes import type_name
from ..switch.toolbox import toolbox
from .checkpoint import (
    check_checkpoint,
    check_pretrained,
    downloading,
    find_resumable,
    load_strictly,
)
from .config import load_config
from .data import build_loops, check_data
from .errors import local_rank, report_input_errors
from .launch import build_runner, launched
from .norm_option import switch_norms


def optim_wrapper_name(cfg: Config) -> str:
    return type_name(cfg.optim_wrapper.get('type', 'OptimWrapper'))


def enable_amp(cfg: Config) -> None:
    """Turns on automatic mixed precision, for which the config needs a plain OptimWrapper."""
    name = optim_wrapper_name(cfg)
    if name == 'OptimWrapper':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    elif name != 'AmpOptimWrapper':
        raise InputError(f'--amp needs optim_wrapper.type OptimWrapper, the config has {name}')


def train_amp_on_cpu(cfg: Config) -> None:
    """Turns mixed precision into bfloat16 autocast on a CPU, where mmengine has none.

    Args:
        cfg: The config, changed in place: an ``AmpOptimWrapper`` becomes an
            :class:`sn_mm.engine.bfloat16.BFloat16OptimWrapper`.

    Raises:
        InputError: The config asks for another dtype.
    """
    if optim_wrapper_name(cfg) != 'AmpOptimWrapper' or get_device() != 'cpu':
        return
    dtype = cfg.optim_wrapper.pop('dtype', None)
    if dtype not in (None, 'bfloat16', torch.bfloat16):
        raise InputError(
            f'optim_wrapper.dtype: {dtype} needs a GPU, and none is visible; on a CPU mixed '
            "precision takes 'bfloat16'"
        )
    for name in ('loss_scale', 'use_fsdp'):
        cfg.optim_wrapper.pop(name, None)
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    if dtype is None and local_rank() == 0:
        print('No GPU: mixed precision in bfloat16 (optim_wrapper.dtype), without loss scaling.')


def check_optimizer(cfg: Config) -> None:
    """Refuses an optimizer that is not registered: mmengine would fail at its signature."""
    kind = (cfg.optim_wrapper.get('optimizer') or {}).get('type')
    if isinstance(kind, str) and resolve(kind, toolbox(cfg), OPTIMIZERS) is None:
        raise InputError(f'optim_wrapper.optimizer.type: {kind} is not a registered optimizer')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Turns on the linear scaling rule, which needs to know the batch size that lr was set for."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError(
            '--auto-scale-lr needs the batch size that the learning rate was set for, and '
            'the config does not say: add auto_scale_lr=dict(base_batch_size=N)'
        )
    cfg.auto_scale_lr.enable = True


def save_resumably(cfg: Config) -> None:
    """Saves checkpoints by :class:`sn_mm.engine.hooks.ResumableCheckpointHook`.

    Args:
        cfg: The config, changed in place: MMEngine's ``CheckpointHook``, with its arguments. Other
            classes stay.
    """
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook'))
    for hook in [*hooks.values(), *(cfg.get('custom_hooks') or [])]:
        if isinstance(hook, dict) and hook.get('type') in (
            'CheckpointHook',
            'mmengine.CheckpointHook',
            'mmengine.hooks.CheckpointHook',
            CheckpointHook,
        ):
            hook['type'] = 'ResumableCheckpointHook'


def keep_seed(cfg: Config, checkpoint: dict) -> None:
    """Takes the seed of the run to resume, which orders the data, unless the config has one."""
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = {**randomness, 'seed': checkpoint.get('meta', {}).get('seed')}


class _StartHook(Hook):
    """Logs the importance that training starts from, once all weights are loaded."""

    def before_train(self, runner: Runner) -> None:
        with full_weights(runner.model):  # by all ranks, each of which may hold a part of them
            layers = from_model(unwrap(runner.model))
        if layers:
            runner.logger.info(f'Importance of SN at the start: {describe(layers)}')


def check_importance_group(cfg: Config, checkpoint: dict) -> None:
    """Refuses to resume a training of version 1.0 by a config that groups the importance.

    Raises:
        InputError: The checkpoint's importance has no parameter group of its own, and the config
            makes one: torch would fail at the number of groups.
    """
    settings = cfg.optim_wrapper.get('paramwise_cfg') or {}
    groups = (checkpoint.get('optimizer') or {}).get('param_groups', [])
    with_sn = any(key.endswith('.mean_weight') for key in weights_of(checkpoint))
    if not with_sn or 'importance' not in settings or names_importance(settings):
        return
    if groups and not any(LR_MULT in group for group in groups):
        raise InputError(
            f'checkpoint {cfg.load_from} is of a training whose importance had no parameter group '
            'of its own, as in sn_mm 1.0: the config in its work dir resumes it, without --norm'
        )


def train(cfg: Config) -> None:
    runner = build_runner(cfg)
    runner.register_hook(_StartHook())
    name_layers(unwrap(runner.model))
    if cfg.get('resume'):
        load_strictly(runner)
    build_loops(runner, ('train', 'val'))
    runner.train()


@report_input_errors
def run(args: Namespace) -> None:
    cfg = load_config(args, 'train')
    switch_norms(cfg, args)
    if args.amp:
        enable_amp(cfg)
    train_amp_on_cpu(cfg)
    check_optimizer(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = find_resumable(cfg.work_dir) if args.resume == 'auto' else args.resume
    if cfg.get('load_from'):
        checkpoint = check_checkpoint(cfg.load_from, resume=cfg.get('resume', False))
        if cfg.get('resume'):
            keep_seed(cfg, checkpoint)
            check_importance_group(cfg, checkpoint)
    check_pretrained(cfg.model)
    check_data(cfg, ('train', 'val'))
    save_resumably(cfg)
    with launched(cfg), downloading(cfg.model, cfg.get('load_from')):
        train(cfg)
