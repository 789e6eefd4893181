"""The cost of SN, for ``mmengine.analysis.get_model_complexity_info`` and mmdet's ``get_flops``."""

from __future__ import annotations

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import elementwise_flop_counter


def register_flop_handles() -> None:
    """Counts the two operations of a recorded SN layer that pass over its input.

    Five operations an element in all, as mmengine counts for the other norms: a sum, differences
    and their squares; a multiplication and an addition. Handles that exist stay.
    """
    handles = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    handles.setdefault('aten::var_mean', elementwise_flop_counter(3, 0))
    handles.setdefault('aten::addcmul', elementwise_flop_counter(0, 2))
