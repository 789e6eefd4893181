"""The norm_cfg that takes the place of another."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import InputError, check_type
from ..layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from ..model.levels import leave_out_batch
from .components import norm_layer, registered_norms, resolve

TYPES = tuple(f'{norm}{axes}' for norm in ('SN', 'SSN') for axes in ('', '1d', '2d', '3d'))
# The other norms that a switch can write: their class, and the arguments that a norm_cfg gives it.
_BATCH = ('eps', 'momentum', 'affine', 'track_running_stats')
_OTHERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    'BN': (nn.BatchNorm2d, _BATCH),
    'SyncBN': (nn.SyncBatchNorm, _BATCH),
    'GN': (nn.GroupNorm, ('num_groups', 'eps', 'affine')),
    'IN': (nn.InstanceNorm2d, _BATCH),
}
# What is written unless the norm_cfg says otherwise: mmcv requires num_groups, and builds
# InstanceNorm without weight and bias unless it has affine=True.
_WRITTEN: dict[str, dict[str, Any]] = {'GN': {'num_groups': 32}, 'IN': {'affine': True}}
_NOT_FOR_CONFIGS = ('self', 'num_features', 'process_group', 'device', 'dtype')
ARGUMENTS = ('requires_grad',) + tuple(
    name
    for name in inspect.signature(SwitchNorm.__init__).parameters
    if name not in _NOT_FOR_CONFIGS
)
_WANTED: dict[str, tuple[type, ...]] = {
    'requires_grad': (bool,),
    'affine': (bool,),
    'track_running_stats': (bool,),
    'eps': (int, float),
    'momentum': (int, float, type(None)),
}


def is_sn(norm_cfg: dict) -> bool:
    """Whether a norm_cfg that :func:`check_target` gave names SN."""
    return norm_cfg['type'] not in _OTHERS


def is_sparse(norm_cfg: dict) -> bool:
    """Whether it names Sparse SN."""
    return 'SSN' in norm_cfg['type']


def check_target(norm_cfg: dict) -> dict:
    """Checks the norm_cfg to switch to.

    Args:
        norm_cfg: ``type``: SN or SSN, with 1d, 2d, 3d or nothing behind it, with or without the
            scope ``sn_mm.``, or the layer's class; or BN, SyncBN, GN (32 groups, if it does not
            say) or IN (with weight and bias, if it does not say). Other keys: the layer's arguments
            and ``requires_grad``.

    Returns:
        A copy with the type as a string.

    Raises:
        InputError: Another type, an argument that the layer does not have, or a value that it
            refuses.
    """
    check_type('norm_cfg', norm_cfg, dict, "a dictionary such as dict(type='SN')")
    kind = norm_cfg.get('type')
    if isinstance(kind, str) and kind in _OTHERS:
        return _check_other({**_WRITTEN.get(kind, {}), **norm_cfg})
    return check_sn(norm_cfg)


def _check_other(norm_cfg: dict) -> dict:
    kind = norm_cfg['type']
    layer, arguments = _OTHERS[kind]
    given = {key: value for key, value in norm_cfg.items() if key != 'type'}
    _check_arguments(kind, given, ('requires_grad', *arguments))
    groups = given.get('num_groups', 1)
    if type(groups) is not int or groups < 1:
        raise InputError(f'num_groups must be a whole number of at least 1, got {groups!r}')
    channels = {'num_channels': groups} if kind == 'GN' else {'num_features': 1}
    try:
        layer(**channels, **layer_arguments(given))
    except (TypeError, ValueError) as error:
        raise InputError(f'{kind} refuses {given}: {error}') from error
    return {'type': kind, **given}


def check_sn(norm_cfg: dict) -> dict:
    """Checks a norm_cfg of SN, as :func:`check_target`."""
    kind = norm_cfg.get('type')
    if inspect.isclass(kind) and issubclass(kind, SwitchNorm):
        name = kind.__name__.replace('SparseSwitchNorm', 'SSN').replace('SwitchNorm', 'SN')
        kind = f'sn_mm.{name}'
    if not isinstance(kind, str) or kind.replace('sn_mm.', '') not in TYPES:
        allowed = ', '.join([*TYPES, *_OTHERS])
        raise InputError(f'the norm to switch to must be one of {allowed}, got {kind!r}')
    given = {key: value for key, value in norm_cfg.items() if key != 'type'}
    _check_arguments(kind, given, ARGUMENTS)
    try:
        SwitchNorm2d(1, **layer_arguments(given))
    except (TypeError, ValueError) as error:
        raise InputError(f'{kind} refuses {given}: {error}') from error
    start = given.get('init_importance')
    if isinstance(start, dict) and 'in' in start:
        raise InputError(
            "MMEngine cannot write a config whose init_importance has the key 'in': name "
            f'the other scopes, which leave it the rest, got {dict(start)}'
        )
    return {'type': kind, **given}


def _check_arguments(kind: str, given: dict, allowed: tuple[str, ...]) -> None:
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise InputError(f'{kind} takes {", ".join(allowed)}, got {", ".join(unknown)}')
    for name, value in given.items():
        wanted = _WANTED.get(name)
        if wanted and not isinstance(value, wanted):
            raise InputError(f'{name} must be {_words(wanted)}, got {value!r}')


def check_norms(config: Any, registry_scope: str, path: str = 'model') -> None:
    """Checks each norm_cfg in a model's config, before anything is built with it.

    Args:
        config: The model's config, or a part of it.
        registry_scope: The config's default scope.
        path: Dotted path of ``config``, for the message.

    Raises:
        InputError: As :func:`check_sn`, with the path of the norm_cfg; or it names a norm that is
            not registered, and the message holds those that are.
    """
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(config, dict):
        children = dict.items(config)  # not ConfigDict's, which import what a lazy config names
        kind = dict.get(config, 'type')
        registry_scope = dict.get(config, '_scope_', registry_scope)
        if isinstance(kind, str) and '.' in kind:  # what it builds is looked for in its own scope
            registry_scope = kind.partition('.')[0]
        if isinstance(kind, str) and kind.replace('sn_mm.', '') in TYPES:
            given = {k: v for k, v in children if k not in _NOT_FOR_CONFIGS}
            try:
                check_sn(given)
            except InputError as error:
                raise InputError(f'{path}: {error}') from error
    elif isinstance(config, (list, tuple)):
        children = enumerate(config)
    for key, child in children:
        if key == 'norm_cfg' and not isinstance(child, (dict, list, tuple, type(None))):
            raise InputError(f"{path}.{key} must be a dict such as dict(type='SN'), got {child!r}")
        if str(key).endswith('norm_cfg') and isinstance(child, dict):
            _check_registered(dict.get(child, 'type'), registry_scope, f'{path}.{key}.type')
        check_norms(child, registry_scope, f'{path}.{key}')


def _check_registered(kind: Any, registry_scope: str, path: str) -> None:
    if not isinstance(kind, str) or kind in (*TYPES, *_OTHERS):  # known without a toolbox
        return
    if resolve(kind, registry_scope) is None:
        registered = ', '.join(sorted(registered_norms(registry_scope)))
        raise InputError(f'{path}: {kind} is not a registered norm; these are: {registered}')


def _words(types: tuple[type, ...]) -> str:
    names = {bool: 'True or False', float: 'a number', type(None): 'None'}
    return ' or '.join(names[kind] for kind in types if kind in names)


def layer_arguments(norm_cfg: dict) -> dict[str, Any]:
    """The arguments of a norm_cfg that go to the layer itself."""
    return {k: v for k, v in norm_cfg.items() if k not in ('type', 'requires_grad')}


def replace(old: dict, norm: type[nn.Module] | None, target: dict, shared: bool) -> dict:
    """Writes the norm_cfg that takes the place of ``old``.

    Args:
        old: The norm_cfg to replace; the arguments that SN has too stay.
        norm: Its class, for the number of dimensions. None: two.
        target: The result of :func:`check_target`.
        shared: The norm serves several levels of a feature pyramid: see
            :func:`sn_mm.model.levels.leave_out_batch`.

    Returns:
        The new norm_cfg.
    """
    kind = target['type']
    layer = norm if norm and issubclass(norm, SwitchNorm) else norm_layer(norm)
    axes = layer.__name__[-2:] if layer and issubclass(layer, (SwitchNorm1d, SwitchNorm3d)) else ''
    if not is_sn(target):
        kept = {k: v for k, v in old.items() if k in ('requires_grad', *_OTHERS[kind][1])}
        return {**kept, **target, 'type': kind + (axes if kind in ('BN', 'IN') else '')}
    if axes:
        kind = f'{kind.rpartition("SN")[0]}SN{axes}'
    kept = {key: value for key, value in old.items() if key in ARGUMENTS}
    new = {'type': kind, **kept, **{k: v for k, v in target.items() if k != 'type'}}
    return leave_out_batch(new) if shared else new
