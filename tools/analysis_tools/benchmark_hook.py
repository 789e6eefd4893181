"""Measures the cost of logging importance in a training: its share of a step's time.

    python tools/analysis_tools/benchmark_hook.py CONFIG --cfg-options KEY=VALUE ...

trains with `SwitchWeightsHook` at a short interval, times each of its logs (the wait for the device
included) and each whole iteration in the same run, and prints the share that remains at the hook's
default interval.
"""

from __future__ import annotations

import time
from inspect import signature
from statistics import median
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sn_mm.analysis.importance import from_model
from sn_mm.cli.config import load_config
from sn_mm.cli.errors import report_input_errors
from sn_mm.cli.launch import build_runner, launched
from sn_mm.engine.hooks import SwitchWeightsHook
from sn_mm_cli.parsers import Parser, add_config_arguments, at_least

DEFAULT_INTERVAL = signature(SwitchWeightsHook).parameters['interval'].default


class TimedHook(SwitchWeightsHook):
    """Keeps the duration of each log."""

    def __init__(self, interval: int) -> None:
        super().__init__(interval)
        self.durations: list[float] = []

    def _log(self, runner: Runner, step: int) -> None:
        start = time.perf_counter()
        super()._log(runner, step)
        self.durations.append(time.perf_counter() - start)


class StepTimer(Hook):
    """Keeps the time from the end of one iteration to the end of the next."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def measure(cfg: Config, interval: int) -> None:
    """Trains with logs at an interval, and prints the cost of a log."""
    runner = build_runner(cfg)
    logs, steps = TimedHook(interval), StepTimer()
    runner.register_hook(logs)
    runner.register_hook(steps)
    runner.train()

    log = median(logs.durations[1:])  # the first one opens the backends' files
    durations = [end - start for start, end in zip(steps.ends, steps.ends[1:])]
    step = median(d for i, d in enumerate(durations, 2) if i % interval)  # without a log
    print(
        f'{len(from_model(runner.model))} layers: one log {1e3 * log:.2f} ms, one step '
        f'{1e3 * step:.1f} ms; every {DEFAULT_INTERVAL} iterations '
        f'{100 * log / step / DEFAULT_INTERVAL:.4f}% of the time'
    )


@report_input_errors
def main() -> None:
    parser = Parser(description=__doc__.split('\n')[0])
    add_config_arguments(parser)
    parser.add_argument(
        '--iters', type=at_least(1), default=40, help='iterations to train (%(default)s)'
    )
    parser.add_argument(
        '--interval', type=at_least(1), default=4, help='iterations per log (%(default)s)'
    )
    args = parser.parse_args()
    cfg = load_config(args, 'train')
    cfg.train_cfg = {'by_epoch': False, 'max_iters': args.iters}
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = None
    with launched(cfg):
        measure(cfg, args.interval)


if __name__ == '__main__':
    main()
