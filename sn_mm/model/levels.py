"""Layers that serve several levels of a feature pyramid: running statistics would mix these."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..layer import SwitchNorm

__all__ = ['leave_out_batch', 'warn_of_levels']


def leave_out_batch(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a layer that serves several levels of a feature pyramid.

    Running statistics mix the levels, so the batch scope is left out. An importance to start from
    that counts on this scope is left out with it. Arguments that name their normalizers stay.
    """
    kept = dict(arguments)
    if 'normalizers' in kept:
        return kept
    if kept.get('init_importance') not in ('in', 'ln'):
        kept.pop('init_importance', None)
    return {**kept, 'normalizers': ['in', 'ln']}


def warn_of_levels(layers: Iterable[SwitchNorm]) -> None:
    """Makes layers warn, once for all, if one of them meets several sizes before a backward pass.

    Each layer is observed by a forward hook that its first backward pass removes: training is as
    fast as without from then on.

    Args:
        layers: The layers to observe. Those without the batch scope, or frozen, are not.
    """
    warned: list[str] = []
    for layer in layers:
        if layer.running_mean is not None and layer.mean_weight.requires_grad:
            _Sizes(layer, warned)


class _Sizes:
    """The forward hook of one layer: an object, so that models pickle and copy."""

    eager_only = True

    def __init__(self, layer: SwitchNorm, warned: list[str]) -> None:
        self.warned = warned
        self.size: torch.Size | None = None
        self.handle = layer.register_forward_hook(self)

    def __call__(self, layer: SwitchNorm, args: tuple[Any, ...], output: Any) -> None:
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if recorded or not (layer.training and isinstance(output, Tensor) and output.requires_grad):
            return
        if self.size is None:
            self.size = output.shape[2:]
            output.register_hook(self._end)
        elif output.shape[2:] != self.size and not self.warned:
            self.warned.append(layer.sync_name)
            warnings.warn(
                f'the SN layer {layer.sync_name!r} met sizes {tuple(self.size)} and '
                f'{tuple(output.shape[2:])} before a backward pass: if these are levels of a '
                'feature pyramid, running statistics mix them, and evaluation differs from '
                'training. convert_switch_norm(model, inputs=...) finds such layers and leaves '
                'their batch scope out',
                stacklevel=2,
            )

    def _end(self, grad: Tensor) -> None:
        self.handle.remove()
