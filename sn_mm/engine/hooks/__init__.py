"""MMEngine hooks for training with SN."""

from .layer_names import LayerNamesHook
from .leftover_norms import LeftoverNormHook
from .precise_sn import PreciseSNHook
from .resumable_checkpoint import ResumableCheckpointHook
from .switch_weights import SwitchWeightsHook

__all__ = [
    'LayerNamesHook',
    'LeftoverNormHook',
    'PreciseSNHook',
    'ResumableCheckpointHook',
    'SwitchWeightsHook',
]
