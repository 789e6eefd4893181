"""The importance that a layer starts from: equal, or what ``init_importance`` names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from .errors import InputError

__all__ = ['FROM_BATCH_NORM', 'OFF_SCOPE', 'initial_logits', 'initial_importance']

FROM_BATCH_NORM = {'bn': 0.9}
"""The importance in a layer that takes over the weights of a BatchNorm: close to the function that
these were trained for, and with logits that learn (docs/use/training.md)."""

OFF_SCOPE = 1e-7
"""What a scope that is named alone leaves to the others: a softmax of finite logits is never 0.
float32 rounds by as much. ResNets of 18 to 101 layers differ from all importance on the scope by no
more than rounding (docs/use/training.md)."""


def initial_importance(
    init_importance: str | Mapping[str, float] | None, normalizers: tuple[str, ...]
) -> list[float]:
    """The importance for a layer to start from.

    Args:
        init_importance: None or 'equal' for an equal one; a scope, which gets all but
            :data:`OFF_SCOPE`; or that of some scopes, the rest going to the others equally.
        normalizers: The scopes of the layer.

    Returns:
        That of each of ``normalizers``.

    Raises:
        InputError: ``init_importance`` is of another kind, names a scope outside ``normalizers``,
            or leaves nothing to another scope.
    """
    count = len(normalizers)
    given = {} if init_importance in (None, 'equal') else init_importance
    if isinstance(given, str):
        given = {given: 1 - OFF_SCOPE * (count > 1)}
    if not isinstance(given, Mapping) or not set(given) <= set(normalizers):
        raise InputError(
            f"init_importance must be None, 'equal', one of the normalizers {normalizers}, or a "
            f'mapping from some of them to numbers, got {init_importance!r}'
        )
    positive = all(isinstance(value, Real) and value > 0 for value in given.values())
    rest = 1 - math.fsum(given.values()) if positive else -1.0
    others = count - len(given)
    if rest <= 0 if others else abs(rest) > 1e-6:
        raise InputError(
            'numbers in init_importance must be positive and sum to less than 1, or to 1 where all '
            f'of {normalizers} are named, got {init_importance!r}'
        )
    equal = rest / max(others, 1)
    return [float(given.get(scope, equal)) for scope in normalizers]


def initial_logits(
    init_importance: str | Mapping[str, float] | None, normalizers: tuple[str, ...]
) -> list[float]:
    """The logits whose softmax is the :func:`initial_importance`: ones for an equal one."""
    importance = initial_importance(init_importance, normalizers)
    return [1 + math.log(len(importance) * value) for value in importance]
