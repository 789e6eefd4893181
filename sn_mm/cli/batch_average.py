"""Replaces a checkpoint's moving average by the batch average, with which the paper evaluates SN.

The frozen network gets mini-batches of its training set, and each layer's statistics are averaged.
All else in the checkpoint stays as it is.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from torch import Tensor

from ..atomic import atomic_path
from ..checkpoints.read import read_checkpoint
from ..engine.training_set import check_seed, measure_on_training_set
from ..engine.unwrap import unwrap
from ..output.files import check_file
from .checkpoint import load_strictly
from .config import load_config
from .data import build_loops, check_data
from .errors import report_input_errors
from .launch import build_runner, launched


def replace(weights: dict[str, Tensor], statistics: dict[str, Tensor]) -> str:
    """Writes statistics into a state dict, and returns a line about the change."""
    shifts: list[Tensor] = []
    factors: list[Tensor] = []
    for key, value in statistics.items():
        stored = key if key in weights else f'module.{key}'
        new, old = value.cpu(), weights[stored]
        if key.endswith('running_var'):
            factors.append((new / old).log().abs())
            shifts[-1] = shifts[-1] / old.sqrt()
        else:
            shifts.append((new - old).abs())
        weights[stored] = new
    shift, factor = torch.cat(shifts).median(), torch.cat(factors).median().exp()
    return (
        f'{len(shifts)} layers; the median channel moved by {shift:.3f} standard deviations, its '
        f'variance by a factor of {factor:.3f}'
    )


def write_average(cfg: Config, args: Namespace, checkpoint: dict[str, Any]) -> None:
    runner = build_runner(cfg)
    load_strictly(runner)
    runner.load_checkpoint(args.checkpoint)
    for progress in ('epoch', 'iter'):  # some models ask how far the training has come
        runner.message_hub.update_info(progress, checkpoint.get('meta', {}).get(progress, 0))
    build_loops(runner, ['train'])
    dataset = runner.train_dataloader.dataset
    statistics = measure_on_training_set(
        unwrap(runner.model),
        {**cfg.train_dataloader, 'dataset': dataset},
        args.num_iters,
        args.seed,
        args.bn,
    )
    if is_main_process():
        if 'state_dict' not in checkpoint:
            checkpoint = {'state_dict': checkpoint}
        change = replace(checkpoint['state_dict'], statistics)
        checkpoint.setdefault('meta', {})['batch_average'] = {
            'num_iters': args.num_iters,
            'processes': get_world_size(),
            'batch_size': cfg.train_dataloader.batch_size,
            'seed': args.seed,
        }
        with atomic_path(args.out) as path:
            torch.save(checkpoint, path)
        print(f'{args.out}: {change}')


@report_input_errors
def run(args: Namespace) -> None:
    check_seed('--seed', args.seed)
    check_file('OUT', args.out)
    checkpoint = read_checkpoint(args.checkpoint)
    cfg = load_config(args, 'train')
    check_data(cfg, ['train'])
    with launched(cfg):
        write_average(cfg, args, checkpoint)
