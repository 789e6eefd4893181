"""Layers that learned to be BatchNorm become one, for inference: it fuses into its convolution."""

from __future__ import annotations

import logging
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..errors import InputError, check_type
from ..layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
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

_MEMBERS = set(SwitchNorm(1).state_dict())


@torch.no_grad()
def revert_switch_norm(
    model: nn.Module,
    threshold: float,
    inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    report: Callable[[str], None] = logger.info,
) -> nn.Module:
    """Replaces SN by BatchNorm where 'in' and 'ln' together hardly count, in place.

    A layer is replaced if their shares in the mean's softmax sum to less than ``threshold``, and in
    the variance's too. The BatchNorm has the layer's weight, bias (the same parameters), running
    statistics, eps, momentum, mode and hooks. It pools no statistics over ranks: revert what is
    trained. mmcv's and torch's functions that fuse BatchNorm into convolutions then apply.

    Left as they are, and reported with the reason: layers that use 'in' or 'ln', layers without
    running statistics or without weight and bias (which mmcv's ``fuse_conv_bn`` cannot fuse),
    subclasses and layers with further parameters, buffers or modules, and a general
    :class:`SwitchNorm` whose number of axes ``inputs`` do not show.

    Args:
        model: Any model, a single layer included.
        threshold: Above 0 and below 1. A layer's statistics change by about this share of the
            distance between its scopes; how much the output changes depends on the network.
        inputs: Of ``model``, one tensor or a tuple of arguments, to measure how much the outputs
            change, in evaluation mode. Default: none, the change is not measured.
        report: Called with one line for each layer, one that counts them, and with ``inputs`` one
            that gives the largest change of an output. Default: logs at level INFO.

    Returns:
        ``model``, or the BatchNorm where ``model`` itself is a layer.

    Raises:
        InputError: Arguments of another kind, ``threshold`` outside (0, 1), a model without SN, or
            ``inputs`` that lead to no floating-point tensor. The model is as it was.
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    check_inputs(inputs)
    check_type('report', report, Callable, 'a function')  # type: ignore[arg-type]
    if not isinstance(threshold, Real) or not 0 < threshold < 1:
        raise InputError(f'threshold must be above 0 and below 1, got {threshold!r}')
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SwitchNorm)}
    if not layers:
        raise InputError('the model has no SN layer to revert')
    axes: dict[nn.Module, int] = {}
    before: list[Tensor] = []
    if inputs is not None:
        output, shapes = run_example(model, inputs, layers.values())
        before = _tensors(output)
        axes = {layer: len(calls[-1]) for layer, calls in shapes.items() if calls}

    replaced: dict[nn.Module, nn.Module] = {}
    lines = []
    for name, layer in layers.items():
        line = f'{name or "model"}: {type(layer).__name__}'
        reason = _obstacle(layer, axes.get(layer)) or _use(layer, threshold)
        if reason:
            lines.append(f'{line} left, {reason}')
            continue
        new = replaced[layer] = _batch_norm(layer, axes.get(layer))
        lines.append(f'{line} -> {type(new).__name__}')
    model = replace_modules(model, replaced)

    for line in lines:
        report(line)
    report(f'SN layers turned into BatchNorm: {len(replaced)} of {len(layers)}')
    if inputs is not None:
        pairs = zip(_tensors(run_example(model, inputs, ())[0]), before)
        change = torch.stack([(new - old).abs().max() for new, old in pairs]).max()
        largest = torch.stack([old.abs().max() for old in before]).max()
        report(f'Largest output change: {change:.3g}, of outputs up to {largest:.3g}')
    return model


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output."""
    leaves = (leaf for leaf in tree_flatten(output)[0] if torch.is_tensor(leaf) and leaf.numel())
    tensors = [leaf.clone() for leaf in leaves if leaf.is_floating_point()]
    if not tensors:
        raise InputError(
            f'inputs must lead to floating-point tensors, got output {type(output).__name__}'
        )
    return tensors


def _obstacle(layer: SwitchNorm, axes: int | None) -> str:
    """Why no BatchNorm can take the layer's place, '' if one can."""
    if type(layer) not in (SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d):
        return 'a subclass'
    extras = {*layer._parameters, *layer._buffers, *layer._modules} - _MEMBERS
    if extras:
        return f'BatchNorm would drop its {", ".join(sorted(extras))}'
    if 'bn' not in layer.normalizers:
        return "it has no 'bn'"
    if layer.running_mean is None:
        return 'it keeps no running statistics'
    if not layer.affine:
        return 'it has no weight and bias, without which nothing fuses'
    if layer._dims is None and axes not in _BATCH_NORMS:
        return 'it takes any number of axes, and no inputs show which'
    return ''


def _use(layer: SwitchNorm, threshold: float) -> str:
    """The shares of 'in' and 'ln' in words where one reaches ``threshold``, else ''."""
    shares = []
    for logits in (layer.mean_weight, layer.var_weight):
        batch = logits.double().softmax(0)[layer.normalizers.index('bn')]
        shares.append(1 - batch.item())
    if max(shares) < threshold:
        return ''
    return f"'in' and 'ln' make {shares[0]:.3g} of its mean, {shares[1]:.3g} of its variance"


def _batch_norm(layer: SwitchNorm, axes: int | None) -> nn.Module:
    kind = _BATCH_NORMS[layer._dims[-1] if layer._dims else axes or 0]
    new = kind(layer.num_features, eps=layer.eps, momentum=layer.momentum, device='meta')
    new.train(layer.training)
    tensors = 'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'
    for name in (*tensors, 'track_running_stats'):
        setattr(new, name, getattr(layer, name))
    return new
