"""The error for what a user gave: raised at every border, by the layer as by the commands."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what was given and what is allowed."""
