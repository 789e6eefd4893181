"""The cost of SN, for ``mmengine.analysis.get_model_complexity_info`` and mmdet's ``get_flops``."""

from __future__ import annotations

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import elementwise_flop_counter


def register_flop_handles() -> None:
    """Counts a recorded SN layer by the squares, which it takes once of all its input.

    Five operations an element, as mmengine counts for the other norms: a sum, differences and their
    squares; a multiplication and an addition. A handle that exists stays.
    """
    handles = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    handles.setdefault('aten::square', elementwise_flop_counter(5, 0))
