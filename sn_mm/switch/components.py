"""The classes that a config names: their kind, their arguments, the SN layers that replace them."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import MODELS, Registry
from torch import nn

from ..layer import SwitchNorm
from ..model.norms import FROZEN, NOT_OF_THE_FAMILY, layers_by_kind, says_norm

# Heads with one set of weights for all levels of a feature pyramid descend from BaseDenseHead or
# SOLOHead; DyHead is a neck that does the same. Classes stand here by name, so that no toolbox is
# imported.
_SHARED = {'BaseDenseHead', 'SOLOHead', 'DyHead'}
# Of these, the ones with norms of their own for each level, or with one level only.
_SEPARATE = {
    'CenterNetHead',
    'CornerHead',
    'MaskFormerHead',
    'RTMDetInsSepBNHead',
    'RTMDetSepBNHead',
    'RetinaSepBNHead',
    'SSDHead',
    'YOLOFHead',
    'YOLOV3Head',
    'YOLOXHead',
}

# Parts that one rank may skip in a training step in which others call them, so that their layers
# must not synchronize: by the class that holds the part, its name and the reason. All other models
# of MMDetection 3.3 and MMSegmentation 1.2 call the same layers in every step.
_PASSED_BY = {
    'SemiBaseDetector': (
        'teacher',
        "the teacher's box head is passed by on a rank where it finds no pseudo boxes",
    ),
    'GridRoIHead': ('grid_head', 'it is passed by on a rank without positive RoIs'),
}


_NORMS = {'_NormBase', 'GroupNorm', 'LayerNorm'}
ALREADY = 'SN already'


def resolve(kind: Any, registry_scope: str | None, root: Registry = MODELS) -> Any:
    """Finds the class that a config's ``type`` names.

    Args:
        kind: A name in the registry, a class, or a class that a lazy config imports.
        registry_scope: The config's default scope.
        root: The registry. Default: that of a model's parts.

    Returns:
        The class or function; None if it is not registered.
    """
    if isinstance(kind, (LazyObject, LazyAttr)):
        return kind.build()
    if not isinstance(kind, str):
        return kind
    with root.switch_scope_and_registry(registry_scope) as registry:
        try:
            return registry.get(kind)
        except RuntimeError:  # mmengine raises it for a name that is not registered
            return None


def registered_norms(registry_scope: str) -> set[str]:
    """The names of norms that a norm_cfg may hold: those of mmcv, of SN and of the toolbox."""
    names: set[str] = set()
    with MODELS.switch_scope_and_registry(registry_scope) as registry:
        node: Registry | None = registry
        while node is not None:
            names |= {n for n, kind in node.module_dict.items() if ancestors(kind) & _NORMS}
            node = node.parent
    return names


def norm_layer(kind: Any) -> type[SwitchNorm] | None:
    """The SN layer that takes the place of a norm class; None for everything else."""
    if not inspect.isclass(kind) or issubclass(kind, SwitchNorm):
        return None
    return next((layer for norm, layer in layers_by_kind().items() if issubclass(kind, norm)), None)


def is_switch_norm(kind: Any) -> bool:
    """Whether a class is SN."""
    return inspect.isclass(kind) and issubclass(kind, SwitchNorm)


def reason_of_kind(kind: Any) -> str:
    """Why a switch leaves a norm of this class alone; '' for what it replaces or is not a norm."""
    if is_switch_norm(kind):
        return ALREADY
    if not inspect.isclass(kind) or not issubclass(kind, nn.Module) or not says_norm(kind):
        return ''
    return FROZEN if 'frozen' in kind.__name__.lower() else NOT_OF_THE_FAMILY


def needs_process_group(kind: Any) -> bool:
    """Whether a class is mmcv's SyncBatchNorm, which asks for the group when it is built."""
    sync = getattr(sys.modules.get('mmcv.ops'), 'SyncBatchNorm', None)
    return sync is not None and inspect.isclass(kind) and issubclass(kind, sync)


def constructor_arguments(cls: Any) -> dict[str, Any]:
    """A class's arguments and their defaults, its bases' included where it takes ``**kwargs``."""
    defaults: dict[str, Any] = {}
    for base in inspect.getmro(cls) if inspect.isclass(cls) else ():
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(vars(base)['__init__']).parameters.values()
        for parameter in parameters:
            defaults.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return defaults


def ancestors(cls: Any) -> set[str]:
    """Names of a class and its bases."""
    return {base.__name__ for base in inspect.getmro(cls)} if inspect.isclass(cls) else set()


def part_passed_by(cls: Any) -> tuple[str, str] | None:
    """The part of a component that a rank may pass by in training, and why; None without one."""
    return next((part for name, part in _PASSED_BY.items() if name in ancestors(cls)), None)


def shares_levels(cls: Any) -> bool:
    """Whether one set of weights of this component serves several levels of a feature pyramid.

    Running batch statistics would mix the levels, each of which has its own statistics.
    """
    names = ancestors(cls)
    return bool(names & _SHARED) and not names & _SEPARATE
