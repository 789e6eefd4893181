"""The optimizer of a switched config: the importance of SN in a group of its own."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import InputError, check_number, check_type
from ..optim import IMPORTANCE, names_importance
from .nodes import type_name

_LR_MULT = 'importance_lr_mult'
_HOOK = 'ImportanceHook'
_CONSTRUCTOR = 'ImportanceOptimWrapperConstructor'


def group_importance(cfg: Config, lr_mult: float | None = None) -> list[str]:
    """Gives the importance of SN a parameter group of its own, with its own learning rate.

    Writes ImportanceOptimWrapperConstructor (:mod:`sn_mm.engine.importance_constructor`) around the
    config's constructor, and :class:`sn_mm.engine.hooks.ImportanceHook`. If custom keys of the
    config name ``mean_weight`` or ``var_weight``, they alone decide; their weight decay becomes 0,
    as it pulls the scopes to equal importance, unless they set it.

    Args:
        cfg: The switched config, changed in place.
        lr_mult: The multiple of the learning rate. Default: that of the config, or by the length of
            the training.

    Returns:
        One line for the user: what was written, or why nothing was.

    Raises:
        InputError: ``lr_mult`` for a config whose custom keys or several optimizers rule it out.
    """
    hooks = cfg.get('custom_hooks') or []
    if not any(type_name(hook['type']) == _HOOK for hook in hooks):
        cfg.custom_hooks = [*hooks, {'type': f'sn_mm.{_HOOK}'}]
    wrapper: Any = cfg.get('optim_wrapper')
    if not isinstance(wrapper, dict):  # a config for tests alone
        return []
    paramwise = wrapper.get('paramwise_cfg') or {}
    one = isinstance(wrapper.get('optimizer'), dict)
    if not one or names_importance(paramwise):
        reason = (
            "the config's custom_keys name the importance of SN, and decide how it learns"
            if one
            else 'it has several optimizers, in which the importance of SN learns as all else'
        )
        if lr_mult is not None:
            raise InputError(f'{_LR_MULT} cannot be set: optim_wrapper: {reason}')
        if one and wrapper['optimizer'].get('weight_decay'):
            for key, settings in paramwise['custom_keys'].items():
                if any(name in key for name in IMPORTANCE):
                    settings.setdefault('decay_mult', 0.0)
        return [f'optim_wrapper: {reason}']
    settings = dict(paramwise.get('importance') or {})
    inner = wrapper.get('constructor')
    if inner and type_name(inner) != _CONSTRUCTOR:
        settings['constructor'] = inner
    if lr_mult is not None:
        settings['lr_mult'] = lr_mult
    wrapper['constructor'] = f'sn_mm.{_CONSTRUCTOR}'
    wrapper['paramwise_cfg'] = ConfigDict({**paramwise, 'importance': settings})
    times = f', {settings["lr_mult"]:g} times the others' if 'lr_mult' in settings else ''
    return [
        'optim_wrapper: the importance has no weight decay, and a learning rate of its own'
        f'{times} (docs/use/training.md)'
    ]


def split_importance(norm_cfg: dict) -> tuple[dict, float | None]:
    """Takes ``importance_lr_mult``, which is not an argument of the layer, out of a norm_cfg of SN.

    Returns:
        The rest, and its value; None without it.

    Raises:
        InputError: It is not a number of at least 0.
    """
    check_type('norm_cfg', norm_cfg, dict, "a dictionary such as dict(type='SN')")
    if 'SN' not in str(norm_cfg.get('type')) or _LR_MULT not in norm_cfg:
        return norm_cfg, None
    check_number(_LR_MULT, norm_cfg[_LR_MULT], 0)
    rest = {key: value for key, value in norm_cfg.items() if key != _LR_MULT}
    return rest, norm_cfg[_LR_MULT]
