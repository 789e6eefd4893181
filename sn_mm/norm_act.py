"""SN, a drop layer and an activation in one module, for timm's norm-and-activation layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .layer import SwitchNorm


class SwitchNormAct(SwitchNorm):
    r"""Switchable Normalization over (N, C, \*S), then a drop layer, then an activation.

    :func:`sn_mm.convert_switch_norm` puts it where a model has timm's ``BatchNormAct2d``,
    ``SyncBatchNormAct``, ``GroupNormAct`` or ``GroupNorm1Act``. As theirs, its parameters have the
    names that they have in a plain norm.

    Args:
        *args: Those of :class:`SwitchNorm`.
        drop: Applied to the normalized input, such as ``nn.Dropout``. Default: none.
        act: Applied last. Default: none.
        **kwargs: Those of :class:`SwitchNorm`.

    Shape:
        As :class:`SwitchNorm`.
    """

    def __init__(
        self,
        *args: Any,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act

    def forward(self, input: Tensor) -> Tensor:
        output = self._normalize(input)
        if not torch.jit.is_scripting():
            if isinstance(output, Proxy):  # of the whole layer, which torch.fx takes as a leaf
                return output
        return self.act(self.drop(output))
