"""SN in MMEngine's registries: ``norm_cfg=dict(type='SN')``.

With ``custom_imports = dict(imports=['sn_mm'])`` MMEngine's root registries have the layers SN,
SN1d, SN2d, SN3d, SSN, SSN1d, SSN2d, SSN3d, the hooks SwitchWeightsHook, SparseSwitchHook,
PreciseSNHook, ResumableCheckpointHook, UnconvertedNormHook, OptimizerCheckHook, LayerNamesHook and
ImportanceHook, ImportanceOptimWrapperConstructor, BFloat16OptimWrapper, and SwitchedModel, which
builds models with norms that no config reaches. ``type='sn_mm.SN'`` needs no import line: MMEngine
finds this file by its name. MMEngine's own local checkpoints load and resume from then on, in the
toolboxes' scripts too, on versions of torch that load weights only.
"""

from collections.abc import Callable, Mapping

from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import (
    LOOPS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    Registry,
)
from mmengine.registry import MODELS as ROOT_MODELS

from .engine import hooks
from .engine.bfloat16 import BFloat16OptimWrapper
from .engine.checkpoint_loaders import register_checkpoint_loaders
from .engine.complexity import register_flop_handles
from .engine.config_packages import register_config_packages
from .engine.importance_constructor import ImportanceOptimWrapperConstructor
from .layer import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from .sparse import SparseSwitchNorm1d, SparseSwitchNorm2d, SparseSwitchNorm3d
from .switch.unconverted import build_switched_model

_MODELS: dict[str, Callable] = {
    'SN': SwitchNorm2d,
    'SN1d': SwitchNorm1d,
    'SN2d': SwitchNorm2d,
    'SN3d': SwitchNorm3d,
    'SSN': SparseSwitchNorm2d,
    'SSN1d': SparseSwitchNorm1d,
    'SSN2d': SparseSwitchNorm2d,
    'SSN3d': SparseSwitchNorm3d,
    'SwitchedModel': build_switched_model,
}
_HOOKS: dict[str, Callable] = {name: getattr(hooks, name) for name in hooks.__all__}


def _register(root: Registry, modules: Mapping[str, Callable]) -> Registry:
    """Registers modules in a root registry and in its child with the scope ``sn_mm``.

    A reload finds the child and the names that it registered before; another package's name is
    never overwritten.
    """
    if 'sn_mm' in root.children:
        child = root.children['sn_mm']
    else:
        child = Registry(root.name, parent=root, scope='sn_mm', locations=['sn_mm.registry'])
    for name, module in modules.items():
        for registry in (child, root):
            known = getattr(registry.module_dict.get(name), '__module__', None)
            registry.register_module(name, force=known == module.__module__, module=module)
    return child


MODELS = _register(ROOT_MODELS, _MODELS)
HOOKS = _register(ROOT_HOOKS, _HOOKS)
_register(OPTIM_WRAPPERS, {'BFloat16OptimWrapper': BFloat16OptimWrapper})
_register(
    OPTIM_WRAPPER_CONSTRUCTORS,
    {'ImportanceOptimWrapperConstructor': ImportanceOptimWrapperConstructor},
)
for root in (PARAM_SCHEDULERS, LOOPS):
    _register(root, {})  # MMEngine looks here for those of a base 'sn_mm::...', then in the root
register_config_packages()
register_checkpoint_loaders()
register_flop_handles()
