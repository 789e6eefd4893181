"""MMEngine hooks for training with SN."""

from .layer_names import LayerNamesHook
from .leftover_norms import LeftoverNormHook
from .precise_sn import PreciseSNHook
from .switch_weights import SwitchWeightsHook

__all__ = ['LayerNamesHook', 'LeftoverNormHook', 'PreciseSNHook', 'SwitchWeightsHook']
