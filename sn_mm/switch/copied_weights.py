"""Lets backbones that copy the weights of a BatchNorm parameter by parameter copy them into SN.

MMAction2's ResNets inflate or rename ImageNet weights by a loop over the parameters of each norm.
This loop expects the importance of SN in the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..layer import SwitchNorm

# Methods of MMAction2's backbones. Each takes a norm, the weights of the file, the norm's name in
# the file, and a list to which it adds the names of the weights that it has loaded.
_COPIES = ('_inflate_bn_params', '_load_bn_params')


def copies_weights(cls: Any) -> bool:
    """Whether a class of backbones copies the weights of norms parameter by parameter."""
    return any(hasattr(cls, name) for name in _COPIES)


def copy_weights_into_sn(model: nn.Module) -> None:
    """Makes such backbones in a model load weights of BatchNorm into SN as ``load_state_dict``."""
    for module in model.modules():
        for name in _COPIES:
            if hasattr(module, name):
                setattr(module, name, partial(_copy, getattr(module, name)))


def _copy(
    copy_batch_norm: Callable[..., None],
    norm: nn.Module,
    weights: dict[str, Tensor],
    name: str,
    loaded: list[str],
) -> None:
    if not isinstance(norm, SwitchNorm):
        return copy_batch_norm(norm, weights, name, loaded)
    own = norm.state_dict()
    given = {key: weights[f'{name}.{key}'] for key in own if f'{name}.{key}' in weights}
    if any(value.shape != own[key].shape for key, value in given.items()):
        warnings.warn(f'the weights of {name} have other shapes and are not loaded', stacklevel=2)
        return None
    norm.load_state_dict(given, strict=False)
    loaded += [f'{name}.{key}' for key in given]
    return None
