"""The error for bad input, raised at every border: by the layer as by the commands."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real


class InputError(ValueError):
    """The input cannot be used; the message says what was given and what is allowed."""


class DtypeError(InputError, TypeError):
    """A tensor's dtype cannot be used."""


def check_positive_int(name: str, value: object) -> None:
    """Checks an argument that counts something. A bool does not count as an int.

    Args:
        name: The argument's name, for the message.
        value: Its value.

    Raises:
        InputError: ``value`` is not an int >= 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'{name} must be an int >= 1, got {value!r}')


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Checks an argument that is a finite number from ``low`` to ``high``. A bool does not count.

    Args:
        name: The argument's name, for the message.
        value: Its value.
        low: The smallest value that is allowed.
        high: The largest. Default: any finite number.

    Raises:
        InputError: ``value`` is not such a number.
    """
    number = isinstance(value, (float, int, Real)) and not isinstance(value, bool)  # Real is slow
    if not number or not low <= value < math.inf or value > high:  # type: ignore[operator]
        wanted = f'>= {low}' if high == math.inf else f'from {low} to {high}'
        raise InputError(f'{name} must be a number {wanted}, got {value!r}')


def check_bool(name: str, value: object) -> None:
    """Checks an argument that switches something.

    Args:
        name: The argument's name, for the message.
        value: Its value.

    Raises:
        InputError: ``value`` is neither True nor False.
    """
    if not isinstance(value, bool):
        raise InputError(f'{name} must be True or False, got {value!r}')


def check_type(name: str, value: object, kind: type, wanted: str) -> None:
    """Checks the class of an argument.

    Args:
        name: The argument's name, for the message.
        value: Its value.
        kind: The class that it must have.
        wanted: That class in words, for the message.

    Raises:
        InputError: ``value`` is of another class.
    """
    if not isinstance(value, kind):
        shown = repr(value)
        shown = shown if len(shown) < 60 else type(value).__name__
        raise InputError(f'{name} must be {wanted}, got {shown}')


def some(names: Iterable[object], count: int = 5) -> str:
    """The first names and the number of the others, for a message."""
    texts = list(map(str, names))
    rest = f' and {len(texts) - count} more' if len(texts) > count else ''
    return ', '.join(texts[:count]) + rest
