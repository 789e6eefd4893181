"""Rewrites a config: every norm of the batch norm family becomes SN, or another norm."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from .._deprecated import warn_renamed
from ..errors import InputError, check_type
from ..functional import SCOPES, canonical_normalizers
from ..sparse import SPARSE
from .components import (
    ALREADY,
    ancestors,
    constructor_arguments,
    is_switch_norm,
    norm_layer,
    part_passed_by,
    reason_of_kind,
    resolve,
    shares_levels,
)
from .copied_weights import copies_weights
from .extent import check_extent, reason_to_leave
from .heads import add_norms
from .importance import group_importance, split_importance
from .nodes import type_name
from .notes import take_notes
from .report import Left, Switched, SwitchReport
from .target import check_target, is_sn, is_sparse, replace
from .toolbox import import_sn_mm, model_type, toolbox

# The arguments of sn_mm.SwitchedModel, which an earlier switch wrote: not a component.
_EARLIER = 'model.switched'
# Building blocks whose owner passes them its norm: their own default has no effect.
_BLOCKS = ('upsample_cfg',)
_HOOK = 'UnconvertedNormHook'
_CHECK_HOOK = 'OptimizerCheckHook'
_SPARSE_HOOK = 'SparseSwitchHook'
_OLD_HOOK = 'LeftoverNormHook'  # the first in version 1.0
_WRITTEN_HOOKS = {_HOOK, _OLD_HOOK, _CHECK_HOOK, _SPARSE_HOOK, 'ImportanceHook'}
_SN_HOOKS = {*_WRITTEN_HOOKS, 'SwitchWeightsHook', 'PreciseSNHook'}


class NothingToSwitch(InputError):
    """A config that reaches no norm of the batch norm family, within the extent of the switch."""


def switch_norm_cfg(
    cfg: Config,
    norm_cfg: dict | None = None,
    extent: str = 'existing',
    *,
    scope: str | None = None,
) -> SwitchReport:
    """Rewrites a config so that the norms of its model are SN.

    Switches BN, SyncBN, GN and IN of any number of dimensions wherever ``cfg.model`` has them, and
    where a component's class has them as a default that the config does not mention. Keeps
    ``requires_grad``, ``eps`` and ``momentum``. Layer norms stay, and so do the norms of a teacher
    that a student is distilled from. The config then imports ``sn_mm`` by itself, and warns of
    norms that are hard-coded in a model (:class:`sn_mm.engine.hooks.UnconvertedNormHook`) and of
    what its optimizer does to SN (:class:`sn_mm.engine.hooks.OptimizerCheckHook`). The importance
    of SN gets a parameter group of its own, without weight decay and with a learning rate of its
    own (``optim_wrapper.paramwise_cfg.importance``, docs/use/training.md).

    A head whose one set of weights serves several levels of a feature pyramid gets
    ``normalizers=['in', 'ln']``, unless ``norm_cfg`` names its normalizers. Parts that a rank may
    pass by in training (the teacher of a semi-supervised detector, the grid head of Grid R-CNN) get
    ``sync=False``; MMAction2's ResNets copy weights of BatchNorm into SN as ``load_state_dict``
    does: such models are built as ``sn_mm.SwitchedModel``.

    Sparse SN (``type='SSN'``) also gets its hook, SparseSwitchHook, and takes the place of SN.

    For a comparison, ``norm_cfg`` may name BN, SyncBN, GN or IN instead. Then SN layers are
    switched too, and the hooks that need SN go.

    Args:
        cfg: Config of any MMEngine toolbox that is installed, changed in place.
        norm_cfg: ``type``: SN or SSN, or BN, SyncBN, GN or IN; further keys: the layer's
            arguments, and for SN and SSN ``importance_lr_mult``, the multiple of the learning rate
            with which the importance learns. 1d and 3d norms become SN1d and SN3d.
            Default: ``dict(type='SN')``.
        extent: 'existing': every norm; 'backbone': those of backbones;
            'all': every norm, and the neck, the box head (the four convolutions of the paper) and
            the mask head get SN where they have no norm. Default: 'existing'.
        scope: The name of ``extent`` in version 1.0.

    Returns:
        The norms switched and left, with paths and reasons.

    Raises:
        NothingToSwitch: The config reaches no such norm; it is then as it was.
        InputError: ``norm_cfg`` or ``extent`` outside what is allowed.

    Examples::

        >>> cfg = Config.fromfile('configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
        >>> rich.print(switch_norm_cfg(cfg, dict(type='SN'), extent='all').table())
    """
    layer_cfg, lr_mult = split_importance(norm_cfg or {'type': 'SN'})
    target = check_target(layer_cfg)
    if scope is not None:
        warn_renamed('switch_norm_cfg(scope=...)', 'extent')
        extent = scope
    check_extent(extent)
    check_type('cfg', cfg, Config, 'a mmengine.Config')
    if not isinstance(cfg.get('model'), dict):
        raise InputError('the config has no model to switch the norms of')
    rewriter = _Rewriter(target, extent, toolbox(cfg))
    model = rewriter.rewrite(cfg.model, 'model')
    report = rewriter.report
    if not report.switched:
        left = {entry.norm for entry in report.left if entry.norm}
        already = sorted({entry.norm for entry in report.left if entry.reason == ALREADY})
        reason = (
            f'its norms are already {", ".join(already)}'
            if already
            else f'the model has no BN, SyncBN, GN or IN in the extent {extent!r} that its config '
            'reaches'
        )
        raise NothingToSwitch(
            f'nothing to switch: {reason} (norms left: {", ".join(sorted(left)) or "none"})'
        )
    cfg.model = ConfigDict(model)
    hooks = cfg.get('custom_hooks') or []
    if not is_sn(target):
        cfg.custom_hooks = [hook for hook in hooks if type_name(hook['type']) not in _SN_HOOKS]
        return report
    if rewriter.passed_by or rewriter.copies_weights:
        cfg.model.switched = cfg.model.get('switched') or {'type': model_type(cfg)}
        cfg.model.type = 'sn_mm.SwitchedModel'
    import_sn_mm(cfg)
    report.notes = take_notes(model, report, hooks)
    report.notes += write_training(cfg, target, extent, lr_mult) + rewriter.passed_by
    return report


def write_training(cfg: Config, target: dict, extent: str, lr_mult: float | None) -> list[str]:
    """Writes what SN needs to train: its hooks, and the group of its importance.

    Args:
        cfg: The switched config, changed in place.
        target: The result of :func:`check_target`, SN.
        extent: Of the switch.
        lr_mult: As for :func:`group_importance`.

    Returns:
        Lines for the user.
    """
    hooks = cfg.get('custom_hooks') or []
    others = [hook for hook in hooks if type_name(hook['type']) not in _WRITTEN_HOOKS]
    cfg.custom_hooks = [*others, {'type': f'sn_mm.{_HOOK}', 'extent': extent}]
    cfg.custom_hooks.append({'type': f'sn_mm.{_CHECK_HOOK}'})
    learns = len(canonical_normalizers(target.get('normalizers', SCOPES))) > 1
    notes = group_importance(cfg, lr_mult) if learns else []
    if is_sparse(target):
        cfg.custom_hooks.append({'type': f'sn_mm.{_SPARSE_HOOK}'})
    return notes


class _Rewriter:
    """Copies a model's config with its norms switched, and keeps the record."""

    def __init__(self, target: dict, extent: str, registry_scope: str) -> None:
        self.target = target
        self.extent = extent
        self.registry_scope = registry_scope
        self.report = SwitchReport()
        self.passed_by: list[str] = []  # a note for each part that a rank may pass by
        self.copies_weights = False  # whether a backbone copies weights parameter by parameter

    def rewrite(self, value: Any, path: str, owner: Any = None, reason: str = '') -> Any:
        """Copies ``value``, which is an argument of the class ``owner``, or stands in one.

        The result shares nothing with ``value``: a norm_cfg that several components of a config
        refer to becomes one for each.
        """
        if isinstance(value, (list, tuple)):
            items = (self.rewrite(v, f'{path}.{i}', owner, reason) for i, v in enumerate(value))
            return type(value)(items)
        if not isinstance(value, dict) or path == _EARLIER:
            return value
        # Not ConfigDict's own items(), which import what a lazy config names.
        config = dict(dict.items(value))
        cls: Any = resolve(config['type'], self.registry_scope) if 'type' in config else None
        if norm_layer(cls) is not None or (is_switch_norm(cls) and self._replaces(cls)):
            return self._switch(config, cls, path, owner, reason)
        if why := reason_of_kind(cls):
            self.report.left.append(Left(path, _name(config['type'], cls), why))
        if part := part_passed_by(cls):
            name, why = part
            self.passed_by.append(
                f'{path}.{name}: its layers get sync=False when the model is built: {why}'
            )
        self.copies_weights |= bool(config.get('pretrained')) and copies_weights(cls)
        copy = {key: self.rewrite(v, f'{path}.{key}', cls, reason) for key, v in config.items()}
        if cls is not None and path.rpartition('.')[2] not in _BLOCKS:
            self._write_defaults(copy, cls, path)
            if self.extent == 'all':
                add_norms(copy, cls, path, self.target, self.report)
        return copy

    def _replaces(self, switch_norm: type) -> bool:
        """Whether the target takes the place of a layer of SN or of Sparse SN."""
        sparse = switch_norm in SPARSE.values()
        return not is_sn(self.target) or sparse != is_sparse(self.target)

    def _write_defaults(self, config: dict, cls: Any, path: str) -> None:
        """Writes the norms that a component's class has by default into the component's config."""
        for name, default in constructor_arguments(cls).items():
            if name not in config and isinstance(default, (dict, list, tuple)):
                before = len(self.report.switched)
                copy = self.rewrite(default, f'{path}.{name}', cls, f'default of {cls.__name__}')
                if len(self.report.switched) > before:
                    config[name] = copy

    def _switch(
        self, norm_cfg: dict, norm: type[nn.Module], path: str, owner: Any, reason: str
    ) -> dict:
        old = {**norm_cfg, 'type': _name(norm_cfg['type'], norm)}
        left = reason_to_leave(path, self.extent)
        if left:
            self.report.left.append(Left(path, old['type'], left))
            return norm_cfg
        shared = shares_levels(owner)
        new = replace(norm_cfg, norm, self.target, shared)
        if 'EncHead' in ancestors(owner) and new['type'].endswith('SN'):
            new['type'] += '2d'  # MMSegmentation replaces '2d' by '1d' for the codes
        reasons = [reason, 'one set of weights for all levels' if shared else '']
        self.report.switched.append(Switched(path, old, new, '; '.join(filter(None, reasons))))
        return new


def _name(kind: Any, cls: type) -> str:
    """A type as the config names it; a class, also one that is imported lazily, by its name."""
    return kind if isinstance(kind, str) else cls.__name__
