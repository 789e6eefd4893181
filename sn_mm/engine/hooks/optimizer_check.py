"""Says before a training what its optimizer does to SN."""

from __future__ import annotations

import logging
from functools import partial

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from ...model.optimizer import check_optimizer
from ..unwrap import unwrap


class OptimizerCheckHook(Hook):
    """Calls :func:`sn_mm.check_optimizer` before training, and warns of what it says."""

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        warn = partial(print_log, logger='current', level=logging.WARNING)
        check_optimizer(unwrap(runner.model), *(w.optimizer for w in wrappers), report=warn)
