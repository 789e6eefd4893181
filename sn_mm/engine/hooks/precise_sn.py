"""Takes the batch average in training, for validation and checkpoints, as the paper does."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import Runner

from ...errors import InputError, check_bool, check_positive_int
from ...model.batch_average import check_not_sharded, set_statistics, tracking_layers
from ..training_set import check_seed, copy_dataset, measure_on_training_set
from ..unwrap import unwrap


class PreciseSNHook(Hook):
    """Replaces SN's moving average by the batch average, before validation and before saving.

    The paper evaluates with statistics averaged over mini-batches of the training set, with the
    weights frozen: see :func:`sn_mm.model.batch_average.measure_batch_average`. Training itself
    does not read these statistics, and goes on as it would without this hook: weights, optimizer,
    order of the data, random states and the statistics of other layers stay as they are.

    With an ``EMAHook`` the averaged weights are those that are validated and saved, and the
    statistics are theirs.

    Args:
        num_iters: Mini-batches for each rank. Default: 200.
        interval: Epochs or iterations from one measurement to the next. It is also measured before
            each validation and before the last checkpoint. Default: the ``CheckpointHook``'s, so
            that every checkpoint has the batch average of its own weights.
        by_epoch: ``interval`` counts epochs, else iterations. Default: True; without ``interval``
            the ``CheckpointHook``'s.
        bn: Average BatchNorm's statistics as well. Default: False.
        seed: Chooses the mini-batches and their augmentation, the same each time. Default: 0.

    Raises:
        InputError: An argument outside what is allowed; before training, a training
            data loader that is not given as a config, or a model without SN or sharded by FSDP.
    """

    priority = 'LOW'  # after EMAHook has updated its copy, before CheckpointHook saves

    def __init__(
        self,
        num_iters: int = 200,
        interval: int | None = None,
        by_epoch: bool = True,
        bn: bool = False,
        seed: int = 0,
    ) -> None:
        check_positive_int('PreciseSNHook: num_iters', num_iters)
        if interval is not None:
            check_positive_int('PreciseSNHook: interval', interval)
        for name, value in (('by_epoch', by_epoch), ('bn', bn)):
            check_bool(f'PreciseSNHook: {name}', value)
        check_seed('PreciseSNHook: seed', seed)
        self.num_iters = num_iters
        self.interval = interval
        self.by_epoch = by_epoch
        self.bn = bn
        self.seed = seed
        self._start = 0
        self._measured_at: int | None = None

    def before_train(self, runner: Runner) -> None:
        if not isinstance(runner._train_dataloader, dict):
            raise InputError(
                'PreciseSNHook: train_dataloader must be a config, so that a second loader leaves '
                f'the order of the training data alone, got {type(runner._train_dataloader)}'
            )
        if not tracking_layers(runner.model, self.bn):
            raise InputError('PreciseSNHook: the model has no SN layer with running statistics')
        check_not_sharded(runner.model)
        if self.interval is None:
            self.interval = 0
            for hook in runner.hooks:
                if isinstance(hook, CheckpointHook):
                    self.interval, self.by_epoch = hook.interval, hook.by_epoch
                    self._start = hook.save_begin

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        due = not self.by_epoch and self.every_n_train_iters(runner, self.interval, self._start)
        if due or self.is_last_train_iter(runner):
            self._measure(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and self.every_n_epochs(runner, self.interval, self._start):
            self._measure(runner, runner.iter)

    def before_val(self, runner: Runner) -> None:
        # EMAHook puts its weights into the model only after this, in before_val_epoch.
        if isinstance(runner._train_loop, dict) or runner._train_loop is None:
            return  # validation alone, with the statistics of a checkpoint
        self._measure(runner, runner.iter)

    def _measure(self, runner: Runner, iteration: int) -> None:
        if iteration == self._measured_at:
            return
        model = unwrap(runner.model)
        averaged = [h.ema_model.module for h in runner.hooks if isinstance(h, EMAHook)]
        dataset = copy_dataset(runner.train_dataloader.dataset)
        statistics = measure_on_training_set(
            averaged[0] if averaged else model,
            {**runner._train_dataloader, 'dataset': dataset},
            self.num_iters,
            self.seed,
            self.bn,
        )
        for network in (model, *averaged):
            set_statistics(network, statistics)
        self._measured_at = iteration
        runner.logger.info(
            f'Batch average over {self.num_iters} mini-batches: {len(statistics) // 2} layers'
        )
