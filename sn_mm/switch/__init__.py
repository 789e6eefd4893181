"""Ready-made configs: every norm of the batch norm family becomes SN, by name."""

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
    'switch_norm_cfg',
]
