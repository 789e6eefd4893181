"""The error for bad input, raised at every border: by the layer as by the commands."""


class InputError(ValueError):
    """The input cannot be used; the message says what was given and what is allowed."""
