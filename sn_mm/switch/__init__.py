"""Ready-made configs: every norm of the batch norm family becomes SN, by name."""

from .extent import EXTENTS
from .leftovers import build_switched_model, convert_leftovers, find_leftovers
from .report import Left, Switched, SwitchReport
from .rewrite import NothingToSwitch, switch_norm_cfg

__all__ = [
    'EXTENTS',
    'Left',
    'NothingToSwitch',
    'SwitchReport',
    'Switched',
    'build_switched_model',
    'convert_leftovers',
    'find_leftovers',
    'switch_norm_cfg',
]
