"""The ResNets with SN that the paper's authors publish, renamed for the toolboxes' ResNets.

Their three repositories name the same network in three ways, and their layers keep ``weight`` and
``bias`` as (1, C, 1, 1) and the running statistics as (1, C, 1). All scopes are fed from the
unbiased instance variance, which is what ``correction=1`` computes.

Converted networks give their outputs to 1e-9 in float64. In float32, networks of the scales that
training leaves differed by up to 7e-6 of the largest output at depths 18 to 101, and by 1.2e-5 at
152, where their own outputs in float32 are 1.5e-5 from those in float64.

Layers of their Sparse SN have one number each in ``radius``, ``mean_fixed`` and ``var_fixed``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, some

__all__ = ['TOOLBOXES', 'Converted', 'convert']

TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')

_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""ResNets by bottleneck or not and number of blocks in each stage."""

_SPARSE = ('.radius', '.mean_fixed', '.var_fixed')

# C4 detectors keep the last stage in their box head.
_DETECTION_STAGE = re.compile(r'(?:Conv_Body\.(?:conv_body\.)?|Box_Head\.)res([1-5])\.(.+)')
_DETECTION_REST = re.compile(
    r'(?:Conv_Body\.(?!conv_body\.)|RPN\.|(?:Box|Mask|Keypoint)_(?:Head|Outs)\.)'
)


class Converted(NamedTuple):
    """A converted checkpoint.

    Attributes:
        state_dict: Weights by the names of the toolbox.
        naming: The repository they come from: 'classification', 'detection' or 'segmentation'.
        backbone: Config of the ResNet that they fit, with its ``norm_cfg``.
        left_out: Keys without a counterpart in the toolbox's network, by the part they belong to.
    """

    state_dict: dict[str, Tensor]
    naming: str
    backbone: dict[str, Any]
    left_out: dict[str, list[str]]


def convert(weights: Mapping[str, Tensor], to: str) -> Converted:
    """Renames and reshapes a published ResNet (v1) of depth 18, 34, 50, 101 or 152.

    Every key is mapped, or returned in ``left_out``. ``num_batches_tracked``, which the authors'
    layers do not count, becomes 0; only training with ``momentum=None`` reads it.

    Args:
        weights: Tensors by the names of one of the repositories, with or without 'module.'.
        to: 'mmdet' or 'mmseg' for a backbone, 'mmpretrain' for a classifier.

    Returns:
        See :class:`Converted`.

    Raises:
        InputError: ``weights`` without SN, of a network that the toolbox does not have, with keys
            unknown or missing, or with a tensor of another shape.
    """
    if to not in TOOLBOXES:
        raise InputError(f'to must be one of {", ".join(TOOLBOXES)}, got {to!r}')
    scopes = next((t.numel() for key, t in weights.items() if key.endswith('.mean_weight')), 0)
    if not scopes:
        raise InputError('it holds no SN layer: no key ends in .mean_weight')
    if scopes not in (2, 3):
        raise InputError(f'its SN layers mix {scopes} scopes, neither (in, ln, bn) nor (in, ln)')
    naming = _naming(weights)
    keys, left_out = _rename(weights, naming, with_classifier=to == 'mmpretrain')
    sparse = {name: keys.pop(name) for name in list(keys) if name.endswith(_SPARSE)}
    renamed = {name: weights[key] for name, key in keys.items()}
    _refuse_preactivation(renamed)

    bottleneck, blocks = _blocks(renamed)
    depth = _DEPTHS.get((bottleneck, blocks))
    if depth is None:
        kind = 'bottleneck' if bottleneck else 'basic'
        raise InputError(
            f'{blocks} {kind} blocks in its stages make no ResNet of depth '
            f'{", ".join(map(str, _DEPTHS.values()))}'
        )
    stem, fc = renamed.get('conv1.weight'), renamed.get('fc.weight')
    width = 64 if stem is None else stem.shape[0]
    classes = 0 if to != 'mmpretrain' else 1000 if fc is None else fc.shape[0]
    shapes = _shapes(bottleneck, blocks, width, scopes, classes)
    misfits = {
        'unknown': [key for name, key in keys.items() if name not in shapes],
        'missing': [name for name in shapes if name not in keys],
    }
    if any(misfits.values()):
        details = '; '.join(f'{kind}: {some(names, 3)}' for kind, names in misfits.items() if names)
        raise InputError(f'its keys are not those of a ResNet-{depth} with SN; {details}')

    state_dict = {}
    for name, shape in shapes.items():
        state_dict[_toolbox_name(name, to)] = _reshape(keys[name], renamed[name], shape)
        if name.endswith('running_var'):
            counter = name.replace('running_var', 'num_batches_tracked')
            state_dict[_toolbox_name(counter, to)] = torch.tensor(0)
    norm_cfg: dict[str, Any] = {'type': 'SN', 'correction': 1}
    if sparse:
        norm_cfg = {'type': 'SSN', 'correction': 1, 'momentum': 0.003}
        of_layers = _sparse_state(renamed, {name: weights[key] for name, key in sparse.items()})
        state_dict.update({_toolbox_name(name, to): t for name, t in of_layers.items()})
    if scopes == 2:
        norm_cfg['normalizers'] = ('in', 'ln')
    backbone = {'type': 'ResNet', 'depth': depth, 'style': 'pytorch', 'norm_cfg': norm_cfg}
    if width != 64:
        backbone.update(stem_channels=width, base_channels=width)
    return Converted(state_dict, naming, backbone, left_out)


def _sparse_state(weights: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The radius of each layer, and the scope that is fixed: theirs say whether, ours say which."""
    state = {}
    for name in (name for name in weights if name.endswith('.mean_weight')):
        layer = name.removesuffix('.mean_weight')
        missing = [suffix for suffix in _SPARSE if f'{layer}{suffix}' not in given]
        numbers = [given[f'{layer}{suffix}'] for suffix in _SPARSE if suffix not in missing]
        if missing or any(number.numel() != 1 for number in numbers):
            raise InputError(
                f'{layer} must have {", ".join(_SPARSE)} of one number each, as all layers of '
                f'Sparse SN; got {", ".join(str(tuple(n.shape)) for n in numbers) or "none"}'
            )
        radius, *flags = numbers
        state[f'{layer}.radius'] = radius.reshape(()).float()
        for statistic, flag in zip(('mean', 'var'), flags):
            logits = weights[f'{layer}.{statistic}_weight']
            one_hot = (torch.arange(len(logits)) == logits.argmax()).float()
            state[f'{layer}.{statistic}_fixed'] = one_hot if flag else torch.zeros_like(one_hot)
    return state


def _naming(keys: Iterable[str]) -> str:
    keys = list(keys)
    if any(_DETECTION_STAGE.match(key.removeprefix('module.')) for key in keys):
        return 'detection'
    if any(key.startswith(('module.', 'fc.')) for key in keys):
        return 'classification'
    return 'segmentation'


def _rename(
    keys: Iterable[str], naming: str, with_classifier: bool
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Keys of a ResNet by the classification repository's names, the others by their part."""
    renamed: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    for key in keys:
        name = re.sub(r'\bssn([123])\.', r'sn\1.', key.removeprefix('module.'))
        stage = _DETECTION_STAGE.match(name) if naming == 'detection' else None
        if stage:
            name = stage[2] if stage[1] == '1' else f'layer{int(stage[1]) - 1}.{stage[2]}'
        elif naming == 'detection' and _DETECTION_REST.match(name):
            left_out.setdefault("a detector's neck or head", []).append(key)
            continue
        elif name.startswith('fc.') and not with_classifier:
            left_out.setdefault('a classifier', []).append(key)
            continue
        if name in renamed:
            raise InputError(f'{renamed[name]} and {key} in it are the same weight')
        renamed[name] = key
    return renamed, left_out


def _refuse_preactivation(weights: Mapping[str, Tensor]) -> None:
    """Refuses ResNet v2, which normalizes the input of a convolution; v1 normalizes its output."""
    for name, norm in weights.items():
        conv = weights.get(name.replace('.sn1.weight', '.conv1.weight'))
        if conv is None or conv is norm:
            continue
        if norm.numel() == conv.shape[1] != conv.shape[0]:
            raise InputError(
                'it is a pre-activation ResNet (v2), and neither mmdet, mmseg nor mmpretrain has '
                'that network'
            )


def _blocks(names: Iterable[str]) -> tuple[bool, tuple[int, ...]]:
    """Whether blocks are bottlenecks, and their number in each of the four stages."""
    names = list(names)
    found = {m.groups() for m in (re.match(r'layer([1-4])\.(\d+)\.', name) for name in names) if m}
    counts = [sum(stage == str(s) for stage, _ in found) for s in range(1, 5)]
    return any('.conv3.' in name for name in names), tuple(counts)


def _shapes(
    bottleneck: bool, blocks: tuple[int, ...], width: int, scopes: int, classes: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the classification repository; ``classes=0``: without the classifier."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes[f'{conv}.weight'] = (out_channels, in_channels, kernel, kernel)
        for parameter in ('weight', 'bias'):
            shapes[f'{norm}.{parameter}'] = (out_channels,)
        for logits in ('mean_weight', 'var_weight'):
            shapes[f'{norm}.{logits}'] = (scopes,)
        for statistic in ('running_mean', 'running_var') if scopes == 3 else ():
            shapes[f'{norm}.{statistic}'] = (out_channels,)

    add('conv1', 'sn1', width, 3, 7)
    channels = width
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        out_channels = 4 * planes if bottleneck else planes
        convs = [(planes, 1), (planes, 3), (out_channels, 1)] if bottleneck else [(planes, 3)] * 2
        for index in range(count):
            block = f'layer{stage + 1}.{index}'
            inner = channels
            for i, (outer, kernel) in enumerate(convs, 1):
                add(f'{block}.conv{i}', f'{block}.sn{i}', outer, inner, kernel)
                inner = outer
            if channels != out_channels:
                add(f'{block}.downsample.0', f'{block}.downsample.1', out_channels, channels, 1)
            channels = out_channels
    if classes:
        shapes.update({'fc.weight': (classes, channels), 'fc.bias': (classes,)})
    return shapes


def _reshape(key: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, C, 1, 1) and (1, C, 1) become (C,), all else must have ``shape`` already."""
    if tuple(tensor.shape) in ((1, *shape, 1, 1), (1, *shape, 1)) and len(shape) == 1:
        return tensor.flatten()
    if tuple(tensor.shape) != shape:
        raise InputError(f'{key} has shape {tuple(tensor.shape)} where {shape} is needed')
    return tensor


def _toolbox_name(name: str, to: str) -> str:
    """SN takes the names of BatchNorm in the toolboxes."""
    name = re.sub(r'\bsn([123])\.', r'bn\1.', name)
    if to != 'mmpretrain':
        return name
    return f'head.{name}' if name.startswith('fc.') else f'backbone.{name}'
