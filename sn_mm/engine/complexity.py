"""The cost of SN, for ``mmengine.analysis.get_model_complexity_info`` and mmdet's ``get_flops``."""

from __future__ import annotations

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import elementwise_flop_counter


def register_flop_handles() -> None:
    """Counts a recorded SN layer by the squares, which it takes once of all its input.

    An element counts as five operations, as for mmengine's other norms: a sum, a difference and its
    square; a multiplication and an addition. A handle that exists already stays.
    """
    handles = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    handles.setdefault('aten::square', elementwise_flop_counter(5, 0))
