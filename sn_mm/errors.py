"""The error for bad input, raised at every border: by the layer as by the commands."""

from __future__ import annotations


class InputError(ValueError):
    """The input cannot be used; the message says what was given and what is allowed."""


def check_positive_int(name: str, value: object) -> None:
    """Checks an argument that counts something. A bool is no int here.

    Args:
        name: The argument's name, for the message.
        value: Its value.

    Raises:
        InputError: ``value`` is not an int >= 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'{name} must be an int >= 1, got {value!r}')
