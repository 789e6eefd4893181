"""The norms of a model: those that SN can take the place of, and those that stay."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from ..norm_act import SwitchNormAct

__all__ = [
    'FOLLOWERS', 'FROZEN', 'NOT_OF_THE_FAMILY', 'STATISTICS', 'Norm', 'acts_frozen', 'eps_of',
    'extras_of', 'find_norms', 'has_statistics', 'layers_by_kind', 'says_norm',
]  # fmt: skip

STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')
FOLLOWERS = ('drop', 'act')
"""The parts of timm's layers that follow the norm."""
NOT_OF_THE_FAMILY = 'not of the batch norm family'
FROZEN = 'a frozen BatchNorm'
_TIMM: dict[str, type[SwitchNorm]] = {
    'BatchNormAct2d': SwitchNormAct,
    'SyncBatchNormAct': SwitchNormAct,
    'GroupNormAct': SwitchNormAct,
    'GroupNorm1Act': SwitchNormAct,
    'GroupNorm': SwitchNorm,
    'GroupNorm1': SwitchNorm,
}
"""The norms of timm with a forward of their own, by name in ``timm.layers``."""


class Norm(NamedTuple):
    """A norm in a model.

    Attributes:
        name: Its name in the model, '' where it is the model.
        module: The norm.
        layer: The SN layer for its kind; None for other norms than BatchNorm, SyncBatchNorm,
            GroupNorm and InstanceNorm.
        reason: Why it stays, '' where SN can take its place.
    """

    name: str
    module: nn.Module
    layer: type[SwitchNorm] | None
    reason: str

    def __str__(self) -> str:
        return f'{self.name or "model"}: {type(self.module).__name__}'


def find_norms(model: nn.Module) -> list[Norm]:
    """Finds the norms of a model, but for those that are SN.

    A norm is a module of the batch norm family, one with a weight and a running variance per
    channel, or one without submodules whose class is named as a norm.

    Args:
        model: Any torch model.

    Returns:
        The norms, in the order of the model's modules.
    """
    norms, kinds = [], layers_by_kind()
    for name, module in model.named_modules():
        if isinstance(module, SwitchNorm):
            continue
        layer = next((v for k, v in kinds.items() if isinstance(module, k)), None)
        if layer is not None:
            norms.append(Norm(name, module, layer, _obstacle(model, name, module)))
        elif _is_frozen(module):
            norms.append(Norm(name, module, None, FROZEN))
        elif has_statistics(module) or (says_norm(type(module)) and not module._modules):
            norms.append(Norm(name, module, None, NOT_OF_THE_FAMILY))
    return norms


def _obstacle(model: nn.Module, name: str, norm: nn.Module) -> str:
    """Why a norm of the batch norm family stays, '' where SN can take its place."""
    owner = type(model.get_submodule(name.rpartition('.')[0]))
    if any(kind.__module__.startswith('torch.ao.nn.') for kind in owner.__mro__):
        return f'{owner.__name__} of torch.ao folds it by its numbers'
    extras = extras_of(norm)
    return extras and f'SN would drop its {extras}'


def has_statistics(module: nn.Module) -> bool:
    """Whether a module has a weight and a running variance per channel."""
    weight, var = getattr(module, 'weight', None), module._buffers.get('running_var')
    return isinstance(weight, Tensor) and var is not None and weight.shape == var.shape


def _is_frozen(module: nn.Module) -> bool:
    """Whether a module holds what a BatchNorm does, and all of it as buffers.

    torchvision, detectron2, MMDetection and Transformers have classes of that kind.
    """
    names = {'weight', 'bias', 'running_mean'}
    return has_statistics(module) and names <= module._buffers.keys()


def eps_of(frozen: nn.Module) -> float:
    """The eps of a frozen BatchNorm. The classes of Transformers have it in their forward only."""
    return getattr(frozen, 'eps', 1e-5)


@torch.no_grad()
def acts_frozen(module: Any) -> bool:
    """Whether a module is a frozen BatchNorm and computes what one does, by an example.

    False on the meta device, where no example shows it.
    """
    if not _is_frozen(module) or module.weight.is_meta:
        return False
    mean, var, eps = module.running_mean, module.running_var, eps_of(module)
    steps = torch.linspace(-2, 2, 8 * len(mean), device=mean.device, dtype=mean.dtype)
    deviation = (var + eps).sqrt().reshape(-1, 1, 1)
    x = mean.reshape(-1, 1, 1) + deviation * steps.reshape(2, -1, 2, 2)
    want = F.batch_norm(x, mean, var, module.weight, module.bias, False, 0.0, eps)
    return torch.allclose(module(x), want, rtol=1e-2, atol=1e-3, equal_nan=True)


def says_norm(kind: type) -> bool:
    """Whether the name of a class says that it is a norm, not that it is normal or normed."""
    return re.search('norm(?!al|ed)', kind.__name__, re.IGNORECASE) is not None


def layers_by_kind() -> dict[type[nn.Module], type[SwitchNorm]]:
    """Norm classes, special ones before their bases, and the layers that take their place."""
    timm = sys.modules.get('timm.layers')  # without it no model has its norms; likewise mmcv.ops
    kinds: dict[type[nn.Module], type[SwitchNorm]] = {
        **{getattr(timm, name): layer for name, layer in _TIMM.items() if hasattr(timm, name)},
        nn.BatchNorm1d: SwitchNorm1d,
        nn.BatchNorm2d: SwitchNorm2d,
        nn.BatchNorm3d: SwitchNorm3d,
        nn.InstanceNorm1d: SwitchNorm1d,
        nn.InstanceNorm2d: SwitchNorm2d,
        nn.InstanceNorm3d: SwitchNorm3d,
        nn.SyncBatchNorm: SwitchNorm,
        _BatchNorm: SwitchNorm,
        _InstanceNorm: SwitchNorm,
        nn.GroupNorm: SwitchNorm,
    }
    mmcv_sync_bn = getattr(sys.modules.get('mmcv.ops'), 'SyncBatchNorm', None)
    if mmcv_sync_bn is not None:
        kinds[mmcv_sync_bn] = SwitchNorm
    return kinds


def extras_of(norm: nn.Module) -> str:
    """The parts of a norm beyond its library class, which SN would drop; '' if it has none."""
    kind, layer = next(item for item in layers_by_kind().items() if isinstance(norm, item[0]))
    if getattr(norm.forward, '__func__', None) is not kind.forward:
        return 'own forward'
    members = {*norm._parameters, *norm._buffers, *norm._modules}
    kept = {'weight', 'bias', *STATISTICS, *(FOLLOWERS if layer is SwitchNormAct else ())}
    return ', '.join(sorted(members - kept))
