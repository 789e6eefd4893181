"""Switchable Normalization (arXiv 1806.10779) for PyTorch, MMEngine, MMDetection, MMSegmentation.

The layers need torch only. Where MMEngine is installed, importing this package registers them
and brings the switch of a whole config.
"""

from importlib.util import find_spec

from . import functional
from ._deprecated import old_names
from .layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from .model.batch_average import update_bn
from .model.convert import convert_switch_norm
from .model.names import name_layers
from .model.optimizer import check_optimizer
from .model.revert import revert_switch_norm
from .optim import parameter_groups
from .sparse import (
    SparseSwitchNorm,
    SparseSwitchNorm1d,
    SparseSwitchNorm2d,
    SparseSwitchNorm3d,
    set_radius,
)
from .version import __version__

__all__ = [
    'SparseSwitchNorm',
    'SparseSwitchNorm1d',
    'SparseSwitchNorm2d',
    'SparseSwitchNorm3d',
    'SwitchNorm',
    'SwitchNorm1d',
    'SwitchNorm2d',
    'SwitchNorm3d',
    '__version__',
    'check_optimizer',
    'convert_switch_norm',
    'functional',
    'name_layers',
    'parameter_groups',
    'revert_switch_norm',
    'set_radius',
    'update_bn',
]

__getattr__ = old_names(__name__, {'simplify': 'revert_switch_norm'})

if find_spec('mmengine') is not None:
    from . import registry  # noqa: F401
    from .switch import switch_config, switch_norm_cfg  # noqa: F401

    __all__ += ['switch_config', 'switch_norm_cfg']
