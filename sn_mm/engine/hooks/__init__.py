"""MMEngine hooks for training with SN."""

from .importance import ImportanceHook
from .layer_names import LayerNamesHook
from .optimizer_check import OptimizerCheckHook
from .precise_sn import PreciseSNHook
from .resumable_checkpoint import ResumableCheckpointHook
from .sparse_switch import SparseSwitchHook
from .switch_weights import SwitchWeightsHook
from .unconverted_norms import LeftoverNormHook, UnconvertedNormHook

__all__ = [
    'ImportanceHook',
    'LayerNamesHook',
    'LeftoverNormHook',
    'OptimizerCheckHook',
    'PreciseSNHook',
    'ResumableCheckpointHook',
    'SparseSwitchHook',
    'SwitchWeightsHook',
    'UnconvertedNormHook',
]
