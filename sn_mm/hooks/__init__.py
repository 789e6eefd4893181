"""MMEngine hooks for training with SN."""

from .precise_sn import PreciseSNHook
from .switch_weights import SwitchWeightsHook

__all__ = ['PreciseSNHook', 'SwitchWeightsHook']
