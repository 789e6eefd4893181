"""Writes the importance into the logs of a training."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...analysis.importance import by_component, from_model, to_scalars
from ...errors import InputError, check_bool, check_positive_int
from ...layer import SwitchNorm
from ...sharding import full_weights
from ..unwrap import unwrap


class SwitchWeightsHook(Hook):
    """Logs the importance of all SN layers while they train.

    It goes through the runner's visualizer, so that all its backends get it (JSON, TensorBoard,
    WandB): ``sn_layer/mean/backbone.layer1.0.bn1/in`` and so on. ``sn-mm plot-importance
    --logs`` draws its course.

    Args:
        interval: Iterations from one log to the next. The first is before training, the last after
            the last iteration. Default: 100.
        by_component: Log the average of each component (stem, layer1, ..., neck, each head) in
            place of each layer: ``sn_component/mean/layer1/in`` and so on. Default: False.

    Raises:
        InputError: An argument outside what is allowed; before training, a model without SN.
    """

    priority = 'BELOW_NORMAL'

    def __init__(self, interval: int = 100, by_component: bool = False) -> None:
        check_positive_int('SwitchWeightsHook: interval', interval)
        check_bool('SwitchWeightsHook: by_component', by_component)
        self.interval = interval
        self.by_component = by_component

    def before_train(self, runner: Runner) -> None:
        if not any(isinstance(module, SwitchNorm) for module in runner.model.modules()):
            raise InputError('SwitchWeightsHook: the model has no SN layer')
        self._log(runner, runner.iter)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._log(runner, runner.iter + 1)

    def _log(self, runner: Runner, step: int) -> None:
        with full_weights(runner.model):  # by all ranks, each of which may hold a part of them
            layers = from_model(unwrap(runner.model))
        if not is_main_process():
            return
        if self.by_component:
            scalars = to_scalars(by_component(layers), 'component')
        else:
            scalars = to_scalars(layers, 'layer')
        runner.visualizer.add_scalars(scalars, step=step)
