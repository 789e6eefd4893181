"""Names of version 1.0, which work with a warning until version 1.2."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ['old_names', 'warn_renamed']


def warn_renamed(old: str, new: str, stacklevel: int = 2) -> None:
    """Warns of an old name.

    Args:
        old: As it was used.
        new: What takes its place.
        stacklevel: As for ``warnings.warn``, from the caller of this function.
    """
    warnings.warn(
        f'{old} is called {new} since version 1.1; the old name goes with version 1.2',
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def old_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the ``__getattr__`` of a module whose objects are found by old names too.

    Args:
        module: The module's ``__name__``.
        names: The new name for each old one.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        warn_renamed(f'{module}.{name}', names[name])
        return getattr(sys.modules[module], names[name])

    return find
