"""The norm_cfg that takes the place of another."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import InputError
from ..layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from .components import norm_layer

_TYPES = ('SN', 'SN1d', 'SN2d', 'SN3d')
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


def check_target(norm_cfg: dict) -> dict:
    """Checks a norm_cfg that names SN.

    Args:
        norm_cfg: ``type``: SN, SN1d, SN2d or SN3d, with or without the scope ``sn_mm.``, or the
            layer's class; other keys: the layer's arguments and ``requires_grad``.

    Returns:
        A copy with the type as a string.

    Raises:
        InputError: Another type, an argument that SN does not have, or a value that it refuses.
    """
    kind = norm_cfg.get('type')
    if inspect.isclass(kind) and issubclass(kind, SwitchNorm):
        kind = f'sn_mm.{kind.__name__.replace("SwitchNorm", "SN")}'
    if not isinstance(kind, str) or kind.replace('sn_mm.', '') not in _TYPES:
        raise InputError(f'the norm to switch to must be one of {", ".join(_TYPES)}, got {kind!r}')
    given = {key: value for key, value in norm_cfg.items() if key != 'type'}
    unknown = [key for key in given if key not in ARGUMENTS]
    if unknown:
        raise InputError(f'{kind} takes {", ".join(ARGUMENTS)}, got {", ".join(unknown)}')
    for name, value in given.items():
        wanted = _WANTED.get(name)
        if wanted and not isinstance(value, wanted):
            raise InputError(f'{name} must be {_words(wanted)}, got {value!r}')
    try:
        SwitchNorm2d(1, **layer_arguments(given))
    except (TypeError, ValueError) as error:
        raise InputError(f'{kind} refuses {given}: {error}') from error
    return {'type': kind, **given}


def check_norms(config: Any, path: str = 'model') -> None:
    """Checks each norm_cfg of SN in a model's config, before anything is built with it.

    Args:
        config: The model's config, or a part of it.
        path: Dotted path of ``config``, for the message.

    Raises:
        InputError: As :func:`check_target`, with the path of the norm_cfg.
    """
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(config, dict):
        children = dict.items(config)  # not ConfigDict's, which import what a lazy config names
        kind = dict.get(config, 'type')
        if isinstance(kind, str) and kind.replace('sn_mm.', '') in _TYPES:
            given = {k: v for k, v in children if k not in _NOT_FOR_CONFIGS}
            try:
                check_target(given)
            except InputError as error:
                raise InputError(f'{path}: {error}') from error
    elif isinstance(config, (list, tuple)):
        children = enumerate(config)
    for key, child in children:
        check_norms(child, f'{path}.{key}')


def _words(types: tuple[type, ...]) -> str:
    names = {bool: 'True or False', float: 'a number', type(None): 'None'}
    return ' or '.join(names[kind] for kind in types if kind in names)


def layer_arguments(norm_cfg: dict) -> dict[str, Any]:
    """The arguments of a norm_cfg that go to the layer itself."""
    return {k: v for k, v in norm_cfg.items() if k not in ('type', 'requires_grad')}


def leave_out_batch(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a layer that serves several levels of a feature pyramid.

    Running statistics mix the levels, so the batch scope is left out, and with it a mix to start
    from that counts on it (shares are of all three scopes); unless the arguments name their
    normalizers.
    """
    if 'normalizers' in arguments:
        return arguments
    kept = {**arguments, 'normalizers': ['in', 'ln']}
    if kept.get('init_importance') not in ('in', 'ln'):
        kept.pop('init_importance', None)
    return kept


def replace(old: dict, norm: type[nn.Module] | None, target: dict, shared: bool) -> dict:
    """Writes the norm_cfg that takes the place of ``old``.

    Args:
        old: The norm_cfg to replace; the arguments that SN has too stay.
        norm: Its class, for the number of dimensions. None: two.
        target: The result of :func:`check_target`.
        shared: The norm serves several levels of a feature pyramid: see :func:`leave_out_batch`.

    Returns:
        The new norm_cfg.
    """
    kind = target['type']
    layer = norm_layer(norm)
    if layer is SwitchNorm1d or layer is SwitchNorm3d:
        registry_scope = kind.rpartition('SN')[0]
        kind = registry_scope + layer.__name__.replace('SwitchNorm', 'SN')
    kept = {key: value for key, value in old.items() if key in ARGUMENTS}
    new = {'type': kind, **kept, **{k: v for k, v in target.items() if k != 'type'}}
    return leave_out_batch(new) if shared else new
