"""The importance in a network: read from a model or a state dict, gathered by component.

A layer's importance is what :meth:`sn_mm.SwitchNorm.importance` returns: ``{'mean': {'in': 0.2,
'ln': 0.3, 'bn': 0.5}, 'var': {...}}``. That of a network is a dictionary from layer names to these,
in the order in which the network registers its layers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..equations import SCOPES
from ..errors import InputError, check_type
from ..layer import SwitchNorm
from ..sharding import full_weight
from ..sparsestmax import sparsest_logits

__all__ = [
    'average',
    'by_component',
    'components',
    'describe',
    'from_log',
    'from_model',
    'from_state_dict',
    'to_scalars',
]

Importance = dict[str, dict[str, float]]

STATISTICS = ('mean', 'var')

_CONTAINERS = {'module', 'backbone', 'roi_head'}
"""Modules that only hold named components: stages, heads."""


def from_model(model: nn.Module) -> dict[str, Importance]:
    """Reads all SN layers of a model with a single copy from its device.

    Where FSDP2 shards their weights, every rank must read; with FSDP1 within its
    ``summon_full_params``.

    Args:
        model: Any module. A layer in several places counts once, under its first name.

    Returns:
        Importance by layer name, without the names that FSDP adds; empty without SN.

    Raises:
        InputError: ``model`` is not a module; FSDP1 shards the weights.
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    layers = {
        name.replace('_fsdp_wrapped_module.', '').replace('._fsdp_wrapped_module', ''): module
        for name, module in model.named_modules()
        if isinstance(module, SwitchNorm)
    }
    if not layers:
        return {}
    logits: list[Tensor] = []
    for layer in layers.values():
        parts = (layer.mean_weight.detach(), layer.var_weight.detach())
        full = (full_weight(part, len(layer.normalizers)) for part in parts)
        logits += layer._softmax_logits(*full)
    if len({row.device for row in logits}) == 1:  # one copy, one wait for the GPU
        logits = list(torch.cat(logits).cpu().split([len(row) for row in logits]))
    rows = iter(logits)
    return {
        name: {statistic: _softmax(next(rows), m.normalizers) for statistic in STATISTICS}
        for name, m in layers.items()
    }


def from_state_dict(
    state_dict: Mapping[str, Any], normalizers: Iterable[str] | None = None
) -> dict[str, Importance]:
    """Reads all SN layers of a state dict.

    Args:
        state_dict: Of a model with SN; wrapped by DataParallel or not.
        normalizers: The scopes of layers that mix fewer than three, in the order in, ln, bn.
            Default: 'in' and 'ln' for two logits without running statistics, as in the paper's
            models for one image per GPU.

    Returns:
        Importance by layer name; empty without SN.

    Raises:
        InputError: A layer has fewer than three logits, and ``normalizers`` are missing or of
            another number.
    """
    given = None if normalizers is None else tuple(normalizers)
    layers = {}
    for key, logits in state_dict.items():
        prefix, parameter = key[: key.rfind('.') + 1], key[key.rfind('.') + 1 :]
        if parameter == 'mean_weight' and f'{prefix}var_weight' in state_dict:
            name = prefix.rstrip('.')
            scopes = _scopes(name, len(logits), f'{prefix}running_mean' in state_dict, given)
            both = torch.stack([logits, state_dict[f'{prefix}var_weight']])
            if f'{prefix}radius' in state_dict:  # of Sparse SN
                fixed = [state_dict[f'{prefix}{statistic}_fixed'] for statistic in STATISTICS]
                radius = state_dict[f'{prefix}radius']
                both = sparsest_logits(both, radius, torch.stack(fixed), False)
            layers[name.removeprefix('module.')] = {
                statistic: _softmax(row, scopes) for statistic, row in zip(STATISTICS, both)
            }
    return layers


def components(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Groups layers as a reader of the architecture would: stem, layer1, ..., neck, each head.

    Args:
        names: Layer names in network order.

    Returns:
        Components in the order in which they begin. Each maps its layers' full names to the rest
        of these names after the component. ``backbone.layer1.0.bn1`` is ``0.bn1`` of ``layer1``.
    """
    grouped: dict[str, dict[str, str]] = {}
    for name in names:
        parts = name.split('.')
        while len(parts) > 1 and parts[0] in _CONTAINERS:
            del parts[0]
        if len(parts) == 1:  # a layer of the backbone itself: before the stages it is the stem
            component, rest = 'stem' if set(grouped) <= {'stem'} else parts[0], parts
        elif len(parts) > 2 and parts[1].isdigit() and not parts[0][-1].isdigit():
            component, rest = '.'.join(parts[:2]), parts[2:]
        else:
            component, rest = parts[0], parts[1:]
        grouped.setdefault(component, {})[name] = '.'.join(rest)
    return grouped


def average(layers: Iterable[Importance]) -> Importance:
    """The mean over layers. A scope that a layer does not mix counts as 0."""
    stacked = list(layers)
    return {
        statistic: {
            scope: sum(layer[statistic].get(scope, 0.0) for layer in stacked) / len(stacked)
            for scope in SCOPES
            if any(scope in layer[statistic] for layer in stacked)
        }
        for statistic in STATISTICS
    }


def describe(layers: Mapping[str, Importance]) -> str:
    """How many layers have which importance: ``53 layers: in 0.05, ln 0.05, bn 0.90; ...``.

    The importance is rounded to two digits. The three that most layers have are named, and the
    layers of the others counted together.
    """

    def text(layer: Importance) -> str:
        mean, var = (
            ', '.join(f'{scope} {value:.2f}' for scope, value in layer[statistic].items())
            for statistic in STATISTICS
        )
        return mean if mean == var else f'mean {mean}, variance {var}'

    found = Counter(map(text, layers.values())).most_common()
    shown = [f'{count} layers: {importance}' for importance, count in found[:3]]
    others = sum(count for _, count in found[3:])
    return '; '.join([*shown, *([f'{others} layers: others'] if others else [])])


def by_component(layers: Mapping[str, Importance]) -> dict[str, Importance]:
    """The mean over the layers of each of the :func:`components`."""
    return {
        component: average(layers[name] for name in names)
        for component, names in components(layers).items()
    }


def to_scalars(importance: Mapping[str, Importance], kind: str) -> dict[str, float]:
    """Flattens importance for a log: ``sn_layer/mean/backbone.layer1.0.bn1/in`` and so on.

    Args:
        importance: By name.
        kind: 'layer' or 'component', for names of layers or of components.
    """
    return {
        f'sn_{kind}/{statistic}/{name}/{scope}': value
        for name, layer in importance.items()
        for statistic, scopes in layer.items()
        for scope, value in scopes.items()
    }


def from_log(text: str) -> dict[int, dict[str, Importance]]:
    """Reads the scalars of :func:`to_scalars` from lines of JSON with a ``step`` each.

    Args:
        text: Content of the ``scalars.json`` that MMEngine's local backend writes. Other lines are
            skipped, and so is an incomplete last line, which a killed training leaves.

    Returns:
        Importance by component, by step; layers are averaged. Empty without any.

    Raises:
        InputError: A line that is not JSON.
    """
    course = {}
    lines = text.splitlines(keepends=True)
    for line in lines:
        if '"sn_' not in line or not line.endswith('\n'):
            continue
        logged: dict[str, dict[str, Importance]] = {'layer': {}, 'component': {}}
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f'a line is not JSON: {error}') from error
        for tag, value in entry.items():
            if tag.startswith(('sn_layer/', 'sn_component/')):
                kind, statistic, name, scope = tag.split('/')
                layer = logged[kind[3:]].setdefault(name, {s: {} for s in STATISTICS})
                layer[statistic][scope] = value
        if any(logged.values()):
            course[int(entry['step'])] = logged['component'] or by_component(logged['layer'])
    return course


def _softmax(logits: Tensor, scopes: Iterable[str]) -> dict[str, float]:
    return dict(zip(scopes, logits.detach().float().softmax(0).tolist()))


def _scopes(
    name: str, count: int, tracks_batch: bool, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    if count == len(SCOPES):
        return SCOPES
    if given is None and count == 2 and not tracks_batch:
        return ('in', 'ln')
    if given is None or len(given) != count:
        raise InputError(
            f'{name} mixes {count} of the scopes {SCOPES}, and its names must be given as '
            f'normalizers, got {given}'
        )
    return given
