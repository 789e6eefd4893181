"""Slim checkpoints to publish: the weights, without the state of the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError

__all__ = ['slim']


def slim(checkpoint: Mapping[str, Any], ema: bool | None = None) -> dict[str, Any]:
    """Keeps weights and meta; drops optimizer, log history and a second copy of the weights.

    Where MMEngine's ``EMAHook`` ran, the checkpoint's ``state_dict`` holds the averaged weights and
    its ``ema_state_dict`` those that they average (the hook swaps them when it saves).

    Args:
        checkpoint: As MMEngine saves it, or a bare state dict.
        ema: True for the averaged weights, which the checkpoint must have; False for those before
            averaging; None for those in ``state_dict``. Default: None.

    Returns:
        ``{'meta': ..., 'state_dict': ...}``.

    Raises:
        InputError: ``ema=True``, and the checkpoint keeps no average.
    """
    state_dict = dict(checkpoint.get('state_dict', checkpoint))
    before_averaging = checkpoint.get('ema_state_dict')
    if ema and before_averaging is None:
        raise InputError('it keeps no EMA weights (ema_state_dict): EMAHook did not run')
    if ema is False and before_averaging is not None:
        for key, tensor in before_averaging.items():
            if key.startswith('module.'):
                state_dict[key.removeprefix('module.')] = tensor
    meta = checkpoint.get('meta', {}) if 'state_dict' in checkpoint else {}
    return {'meta': meta, 'state_dict': state_dict}
