"""Names the SN layers before training, for the error of ranks that meet in different layers."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...model.names import name_layers
from ..unwrap import unwrap


class LayerNamesHook(Hook):
    """Calls :func:`sn_mm.name_layers` before training, as ``sn-mm train`` does by itself.

    For training with the toolboxes' own scripts.
    """

    def before_train(self, runner: Runner) -> None:
        name_layers(unwrap(runner.model))
