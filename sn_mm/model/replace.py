"""Module surgery: some modules of a model replaced by others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ['replace_modules']

_HOOKS = [name for name in vars(nn.Module()) if '_hook' in name]
"""Where torch keeps the hooks of a module."""


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replaces modules wherever a model uses them, in place.

    A new module gets the hooks of the old one, in the same dictionaries: the handles that were
    given out for these hooks still remove them.

    Args:
        model: Any model.
        replacements: The new module for each old one.

    Returns:
        ``model``, or the module that replaces it.
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    for old, new in replacements.items():
        vars(new).update({name: vars(old)[name] for name in _HOOKS if name in vars(old)})
    return replacements.get(model, model)
