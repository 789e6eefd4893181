"""Ready-made configs: every norm of the batch norm family becomes SN, by name."""

from .._deprecated import old_names
from .config import switch_config
from .extent import EXTENTS
from .report import Left, Switched, SwitchReport
from .rewrite import NothingToSwitch, switch_norm_cfg
from .unconverted import build_switched_model, convert_unconverted, find_unconverted

__all__ = [
    'EXTENTS',
    'Left',
    'NothingToSwitch',
    'SwitchReport',
    'Switched',
    'build_switched_model',
    'convert_unconverted',
    'find_unconverted',
    'switch_config',
    'switch_norm_cfg',
]

__getattr__ = old_names(
    __name__,
    {'find_leftovers': 'find_unconverted', 'convert_leftovers': 'convert_unconverted'},
)
