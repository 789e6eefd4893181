"""Sets the learning rate of the importance by the training's length, and says what came of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ...equations import SCOPES
from ...errors import InputError
from ...layer import SwitchNorm
from ...optim import FEWEST_STEPS, importance_lr, travel_of
from ...sharding import full_weights
from ..importance_constructor import LR_MULT
from ..unwrap import unwrap

_START = 'sn_importance_at_start'  # in the message hub, which checkpoints keep
_PEAKS = ('max_lr', 'initial_lr', 'lr')  # of a parameter group, as schedules keep them
_RATES = (*_PEAKS, 'min_lr')
_HARDLY = 0.05


class ImportanceHook(Hook):
    """Sets the learning rate of the importance, and says if the importance hardly moved.

    Before training: where
    :class:`sn_mm.engine.importance_constructor.ImportanceOptimWrapperConstructor` has made a group
    of the importance without a ``lr_mult``, it gets the learning rate of
    :func:`sn_mm.optim.importance_lr` for the steps that the training loop will make, be they
    counted in iterations or in epochs. Schedules scale it as those of the other groups. A resumed
    training keeps the learning rate that it had.

    After training: a warning if the importance moved by less than 0.05 on average in 50 iterations
    or more. Layers that are frozen, or start from one scope alone, do not count.
    """

    priority = 'HIGHEST'  # before hooks that remember initial learning rates, as MMYOLO's do

    def before_train(self, runner: Runner) -> None:
        group = _group(runner)
        if group is not None and group[LR_MULT] is None:
            _set_rate(runner, group)
        if runner.iter == 0:
            runner.message_hub.update_info(_START, _importance(runner.model))

    def after_train(self, runner: Runner) -> None:
        start: dict = runner.message_hub.get_info(_START, {})
        end = _importance(runner.model)
        moved = [max(abs(a - b) for a, b in zip(start[k], end[k])) for k in start if k in end]
        trial = runner.max_iters < FEWEST_STEPS
        if trial or not moved or sum(moved) / len(moved) >= _HARDLY:
            return
        group = _group(runner)
        if group is None:
            remedy = (
                "optim_wrapper.constructor='sn_mm.ImportanceOptimWrapperConstructor' gives it a "
                'learning rate of its own'
            )
        else:
            remedy = (
                f'it learned at {group[LR_MULT]:.4g} times the learning rate of the others, and '
                'optim_wrapper.paramwise_cfg.importance.lr_mult sets more'
            )
        print_log(
            f'The importance of SN hardly moved: it changed by '
            f'{sum(moved) / len(moved):.2g} on average, {max(moved):.2g} at most; {remedy} '
            '(docs/use/training.md).',
            'current',
            logging.WARNING,
        )


def _group(runner: Runner) -> dict[str, Any] | None:
    """The importance's group, where the constructor has made one."""
    wrapper = runner.optim_wrapper
    groups = wrapper.optimizer.param_groups if isinstance(wrapper, OptimWrapper) else []
    return next((group for group in groups if LR_MULT in group), None)


def _set_rate(runner: Runner, group: dict[str, Any]) -> None:
    """Multiplies the learning rate of the importance's group, also where schedules keep it."""
    wrapper = runner.optim_wrapper
    groups = wrapper.optimizer.param_groups
    steps = math.ceil(runner.max_iters / wrapper._accumulative_counts)
    peak = next(group[key] for key in _PEAKS if key in group)
    travel = travel_of(wrapper.optimizer)
    if travel is None:
        times = 1.0
        reason = f'for {type(wrapper.optimizer).__name__} no other was measured'
    else:
        times = importance_lr(peak, steps, travel) / peak if peak else 1.0
        reason = f'for {steps} steps'
    for key in _RATES:
        if key in group:
            group[key] *= times
    index = next(index for index, other in enumerate(groups) if other is group)
    for scheduler in runner.param_schedulers or []:
        if scheduler.param_name == 'lr':
            scheduler.base_values[index] *= times
    group[LR_MULT] = times
    print_log(
        f'Importance of SN: {len(group["params"])} parameters in a group of their own, without '
        f'weight decay, at {times:.4g} times the learning rate of the others: {reason}.',
        'current',
    )


def _importance(model: nn.Module) -> dict[str, list[float]]:
    """That of the layers in which it is meant to move, by name; none of parameters out of reach."""
    try:
        with full_weights(model):  # a collective where FSDP shards them
            found = {name: layer.importance() for name, layer in _learning(unwrap(model))}
    except InputError:  # sharded by another library, such as DeepSpeed
        return {}
    return {name: [*both['mean'].values(), *both['var'].values()] for name, both in found.items()}


def _learning(model: nn.Module) -> Iterator[tuple[str, SwitchNorm]]:
    for name, layer in model.named_modules():
        if (
            isinstance(layer, SwitchNorm)
            and layer.mean_weight.requires_grad
            and len(layer.normalizers) > 1
            and layer.init_importance not in SCOPES
        ):
            yield name, layer
