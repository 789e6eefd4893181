"""What keeps others from folding SN into a convolution as if it were BatchNorm."""

from __future__ import annotations

from typing import Any, NoReturn

from .errors import InputError


class GuardedEps(float):
    """The ``eps`` of a layer: a number that refuses to be added to a tensor.

    Code that folds BatchNorm into a convolution goes by the attributes, which SN has too, and adds
    ``eps`` to ``running_var``. With SN the result would be wrong, as its statistics depend on the
    input, and nothing would say so.
    """

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(
            'eps of an SN layer was added to a tensor, as code does that folds BatchNorm into a '
            'convolution: folded, SN is another function. sn_mm.revert_switch_norm(model) makes '
            'BatchNorm of what has learned to be one, and the rest cannot be folded; '
            'float(layer.eps) is the number'
        )
