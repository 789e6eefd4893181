"""Replaces layers that have become one norm by that norm: BatchNorm fuses into convolutions."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..errors import InputError, check_type
from ..frozen import FrozenSwitchNorm2d
from ..layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from ..sparse import SPARSE, SparseSwitchNorm
from ..warm_start import OFF_SCOPE
from .example import check_inputs, run_example
from .replace import replace_modules

__all__ = ['revert_switch_norm']

logger = logging.getLogger(__name__)

_BATCH_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
"""BatchNorm by number of input axes."""

_INSTANCE_NORMS: dict[int, type[nn.Module]] = {
    3: nn.InstanceNorm1d,
    4: nn.InstanceNorm2d,
    5: nn.InstanceNorm3d,
}

_KINDS = (SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, FrozenSwitchNorm2d)
_SPARSE_KINDS = tuple(SPARSE[kind] for kind in _KINDS if kind in SPARSE)
_MEMBERS = set(SparseSwitchNorm(1).state_dict())


@torch.no_grad()
def revert_switch_norm(
    model: nn.Module,
    threshold: float | None = None,
    inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    report: Callable[[str], None] = logger.info,
) -> nn.Module:
    """Replaces SN layers by the torch norm that they have become, in place.

    Sparse SN with all importance on one scope, the same for means and variances, becomes that
    scope's norm, exactly: BatchNorm, InstanceNorm or GroupNorm with one group. SN becomes BatchNorm
    where the importance of 'in' and 'ln' sums to less than ``threshold`` for the means, and for the
    variances too; a :class:`sn_mm.frozen.FrozenSwitchNorm2d` without a threshold, as long as it is
    the BatchNorm whose place it took. The norm has the layer's weight, bias (the same parameters),
    running statistics, eps, momentum, mode and hooks. It pools no statistics over ranks: revert
    what is trained. mmcv's and torch's functions that fuse BatchNorm into convolutions then apply.

    Left as they are, and reported with the reason: layers that use several scopes; layers whose
    BatchNorm would have no running statistics, or no weight and bias (which mmcv's ``fuse_conv_bn``
    cannot fuse); instance and layer scopes of ``correction=1``, which no norm of torch has;
    subclasses and layers with further parameters, buffers or modules; and layers for any number of
    axes where ``inputs`` do not show it.

    Args:
        model: Any model, a single layer included.
        threshold: Above 0 and below 1. A layer's statistics change by about this share of the
            distance between its scopes; how much the output changes depends on the network.
            Default: None, layers of SN stay but for frozen ones.
        inputs: Of ``model``, one tensor or a tuple of arguments, to measure how much the outputs
            change, in evaluation mode. Default: none, the change is not measured.
        report: Called with one line for each layer, one that counts them, and with ``inputs`` one
            that gives the largest change of an output. Default: logs at level INFO.

    Returns:
        ``model``, or the norm where ``model`` itself is a layer.

    Raises:
        InputError: Arguments of another kind, ``threshold`` outside (0, 1), a model without SN,
            without Sparse SN or frozen layers where there is no ``threshold``, or ``inputs`` that
            lead to no floating-point tensor. The model is as it was.
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    check_inputs(inputs)
    check_type('report', report, Callable, 'a function')  # type: ignore[arg-type]
    if threshold is not None and (not isinstance(threshold, Real) or not 0 < threshold < 1):
        raise InputError(f'threshold must be above 0 and below 1, got {threshold!r}')
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SwitchNorm)}
    if not layers:
        raise InputError('the model has no SN layer to revert')
    if threshold is None and not any(map(_may_be_one_norm, layers.values())):
        raise InputError(
            'layers of SN need a threshold, such as 0.01: only layers of Sparse SN and frozen ones '
            'are one norm'
        )
    axes: dict[nn.Module, int] = {}
    pooled: set[nn.Module] = set()
    before: list[Tensor] = []
    if inputs is not None:
        output, shapes = run_example(model, inputs, layers.values())
        before = _tensors(output)
        axes = {layer: len(calls[-1]) for layer, calls in shapes.items() if calls}
        pooled = {k for k, calls in shapes.items() if any(math.prod(s[2:]) == 1 for s in calls)}

    replaced: dict[nn.Module, nn.Module] = {}
    lines = []
    for name, layer in layers.items():
        line = f'{name or "model"}: {type(layer).__name__}'
        scope, reason = _scope(layer, threshold)
        dims = layer._dims[-1] if layer._dims else axes.get(layer)
        if scope == 'in' and layer._dims == (2, 3):  # InstanceNorm1d reads (N, C) as (C, L)
            dims = axes.get(layer)
        if scope == 'in' and layer in pooled:
            reason = "it meets one position per channel, where 'in' is left out"
        reason = _obstacle(layer) or reason or _obstacle_of(scope, layer, dims)
        if reason:
            lines.append(f'{line} left, {reason}')
            continue
        new = replaced[layer] = _norm(scope, layer, dims)
        stays = ', which model.train() makes train' if isinstance(layer, FrozenSwitchNorm2d) else ''
        lines.append(f'{line} -> {type(new).__name__}{stays}')
    model = replace_modules(model, replaced)

    for line in lines:
        report(line)
    report(f"SN layers turned into torch's norms: {len(replaced)} of {len(layers)}")
    if inputs is not None:
        pairs = zip(_tensors(run_example(model, inputs, ())[0]), before)
        change = torch.stack([(new - old).abs().max() for new, old in pairs]).max()
        largest = torch.stack([old.abs().max() for old in before]).max()
        report(f'Largest output change: {change:.3g}, of outputs up to {largest:.3g}')
    return model


def _may_be_one_norm(layer: SwitchNorm) -> bool:
    """Whether the layer is of a kind that becomes one norm without a threshold."""
    return isinstance(layer, (FrozenSwitchNorm2d, *SPARSE.values()))


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output."""
    leaves = (leaf for leaf in tree_flatten(output)[0] if torch.is_tensor(leaf) and leaf.numel())
    tensors = [leaf.clone() for leaf in leaves if leaf.is_floating_point()]
    if not tensors:
        raise InputError(
            f'inputs must lead to floating-point tensors, got output {type(output).__name__}'
        )
    return tensors


def _obstacle(layer: SwitchNorm) -> str:
    """Why no norm can take the layer's place, '' if one may."""
    if type(layer) not in (*_KINDS, *_SPARSE_KINDS):
        return 'a subclass'
    extras = {*layer._parameters, *layer._buffers, *layer._modules} - _MEMBERS
    return f'another norm would drop its {", ".join(sorted(extras))}' if extras else ''


def _scope(layer: SwitchNorm, threshold: float | None) -> tuple[str, str]:
    """The only scope of a layer, or why there is none."""
    importance = layer.importance()
    if type(layer) in _SPARSE_KINDS:
        means, variances = (max(found, key=found.__getitem__) for found in importance.values())
        if any(max(found.values()) < 1 for found in importance.values()):
            return '', 'its importance is not one-hot'
        if means != variances:
            return '', f'its means are of {means!r} and its variances of {variances!r}'
        return means, ''
    if 'bn' not in layer.normalizers:
        return '', "it has no 'bn'"
    others = [1 - found['bn'] for found in importance.values()]
    # A layer that started as one norm has this much on the other scopes, rounding included.
    rest = 2 * OFF_SCOPE if _may_be_one_norm(layer) else 0
    if max(others) >= (threshold or rest):
        mean, var = (f'{other:.3g}' for other in others)
        return '', f"'in' and 'ln' make {mean} of its mean, {var} of its variance"
    return 'bn', ''


def _obstacle_of(scope: str, layer: SwitchNorm, axes: int | None) -> str:
    """Why torch's norm of this scope cannot take the layer's place, '' if it can."""
    if scope == 'bn':
        if layer.running_mean is None:
            return 'it keeps no running statistics'
        if not layer.affine:
            return 'it has no weight and bias, without which nothing fuses'
    elif layer.correction:
        return 'its instance variance is the unbiased one of correction=1'
    norms: dict[str, dict[int, type[nn.Module]]] = {'bn': _BATCH_NORMS, 'in': _INSTANCE_NORMS}
    if scope in norms and axes not in norms[scope]:
        return 'it takes any number of axes, and no inputs show which'
    return ''


def _norm(scope: str, layer: SwitchNorm, axes: int | None) -> nn.Module:
    given: dict[str, Any] = {'eps': float(layer.eps), 'affine': layer.affine, 'device': 'meta'}
    tensors = ['weight', 'bias']
    if scope == 'ln':
        new: nn.Module = nn.GroupNorm(1, layer.num_features, **given)
    elif scope == 'in':
        new = _INSTANCE_NORMS[axes or 0](layer.num_features, **given)
    else:
        new = _BATCH_NORMS[axes or 0](layer.num_features, momentum=layer.momentum, **given)
        tensors += ['running_mean', 'running_var', 'num_batches_tracked', 'track_running_stats']
    new.train(layer.training)
    for name in tensors:
        setattr(new, name, getattr(layer, name))
    return new
