"""SN that stays the frozen BatchNorm whose place it takes, until it is made to learn."""

from __future__ import annotations

from typing import Any

from .layer import SwitchNorm2d


class FrozenSwitchNorm2d(SwitchNorm2d):
    """Switchable Normalization in the place of torchvision's ``FrozenBatchNorm2d``.

    It starts with all importance but 1e-7 on 'bn' and without gradients. As long as its importance
    has none it stays in evaluation mode, whatever mode its model is in. After
    ``layer.requires_grad_(True)`` the next ``model.train()`` makes it train as any SN layer.

    Args:
        num_features: C of the input.
        **kwargs: Those of :class:`sn_mm.SwitchNorm2d`, ``init_importance='bn'`` by default.

    Shape:
        As :class:`sn_mm.SwitchNorm2d`.
    """

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(num_features, **{'init_importance': 'bn', **kwargs})
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenSwitchNorm2d:
        return super().train(mode and self.mean_weight.requires_grad)
