"""Raises the radius of Sparse SN with the training."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...sharding import full_weights
from ...sparse import set_radius
from ..unwrap import unwrap


class SparseSwitchHook(Hook):
    """Raises the radius of all Sparse SN layers linearly, from 0 to 1 over the training.

    It counts the iterations of any loop, and a resumed training goes on where it was. For another
    schedule call :func:`sn_mm.set_radius` in a hook of your own.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        with full_weights(runner.model):  # FSDP1 shards them
            set_radius(unwrap(runner.model), runner.iter / runner.max_iters)
