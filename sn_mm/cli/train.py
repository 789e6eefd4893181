"""Trains a model of MMDetection, MMSegmentation or another MMEngine toolbox; SN is registered."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import OPTIMIZERS, DefaultScope

from ..engine.unwrap import unwrap
from ..errors import InputError
from ..model.names import name_layers
from ..switch.toolbox import toolbox
from .checkpoint import (
    check_checkpoint,
    check_pretrained,
    downloading,
    find_resumable,
    load_strictly,
)
from .config import add_config_arguments, load_config
from .data import build_loops, check_data
from .errors import report_input_errors
from .launch import build_runner, launched
from .norm_option import add_switch_arguments, switch_norms


def parse_args() -> Namespace:
    parser = ArgumentParser(description='Train a model.')
    add_config_arguments(parser)
    add_switch_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate to the batch size, from the config's auto_scale_lr",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; without a path, from the latest in the work dir',
    )
    return parser.parse_args()


def optim_wrapper_name(cfg: Config) -> str:
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    return getattr(kind, '__name__', kind).split('.')[-1]


def enable_amp(cfg: Config) -> None:
    """Turns on automatic mixed precision, for which the config needs a plain OptimWrapper."""
    name = optim_wrapper_name(cfg)
    if name == 'OptimWrapper':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    elif name != 'AmpOptimWrapper':
        raise InputError(f'--amp needs optim_wrapper.type OptimWrapper, the config has {name}')


def check_amp(cfg: Config) -> None:
    """Refuses a config with mixed precision on a machine without a GPU, where mmengine has none."""
    if optim_wrapper_name(cfg) == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise InputError(
            'mixed precision (--amp, AmpOptimWrapper) needs a GPU, and none is visible'
        )


def check_optimizer(cfg: Config) -> None:
    """Refuses an optimizer that is not registered: mmengine would fail at its signature."""
    kind = (cfg.optim_wrapper.get('optimizer') or {}).get('type')
    with DefaultScope.overwrite_default_scope(toolbox(cfg)):
        if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
            raise InputError(f'optim_wrapper.optimizer.type: {kind} is not a registered optimizer')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Turns on the linear scaling rule, which needs to know the batch size that lr was set for."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise InputError(
            '--auto-scale-lr needs the batch size that the learning rate was set for, and '
            'the config does not say: add auto_scale_lr=dict(base_batch_size=N)'
        )
    cfg.auto_scale_lr.enable = True


def train(cfg: Config) -> None:
    runner = build_runner(cfg)
    name_layers(unwrap(runner.model))
    if cfg.get('resume'):
        load_strictly(runner)
    build_loops(runner, ('train', 'val'))
    runner.train()


@report_input_errors
def main() -> None:
    args = parse_args()
    cfg = load_config(args, 'train')
    switch_norms(cfg, args)
    if args.amp:
        enable_amp(cfg)
    check_amp(cfg)
    check_optimizer(cfg)
    if args.auto_scale_lr:
        enable_auto_scale_lr(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = find_resumable(cfg.work_dir) if args.resume == 'auto' else args.resume
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, resume=cfg.get('resume', False))
    check_pretrained(cfg.model)
    check_data(cfg, ('train', 'val'))
    with launched(cfg), downloading(cfg.model, cfg.get('load_from')):
        train(cfg)
