"""MMEngine hooks for training with SN."""

from .leftover_norms import LeftoverNormHook
from .precise_sn import PreciseSNHook
from .resumable_checkpoint import ResumableCheckpointHook
from .switch_weights import SwitchWeightsHook

__all__ = ['LeftoverNormHook', 'PreciseSNHook', 'ResumableCheckpointHook', 'SwitchWeightsHook']
