"""A stand-in for hypothesis where it is not installed: its tests are skipped, the others run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

REASON = 'hypothesis is not installed'


def stand_in_for_hypothesis() -> None:
    """Puts up modules ``hypothesis`` and ``hypothesis.strategies`` if they are not installed."""
    if find_spec('hypothesis') is None:
        package, strategies = _Package('hypothesis'), _Package('hypothesis.strategies')
        package.strategies = strategies  # type: ignore[attr-defined]
        sys.modules.update({'hypothesis': package, 'hypothesis.strategies': strategies})


class _Anything:
    """Strategies, and the functions that make them; never drawn from."""

    def __getattr__(self, name: str) -> _Anything:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Anything:
        return self

    __or__ = __call__


class _Settings(_Anything):
    """A decorator that leaves its test as it is: ``settings``, ``example``, ``seed``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self


class _Package(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        if name == 'given':
            return _given
        return _Settings() if self.__name__ == 'hypothesis' else _Anything()


def _given(*strategies: Any, **named: Any) -> Callable[[Callable], Any]:
    def decorate(test: Callable) -> Any:
        def skipped(**kwargs: Any) -> None: ...

        # The arguments that pytest gives: not those that hypothesis would draw, the last ones.
        signature = inspect.signature(test)
        drawn = {*named, *list(signature.parameters)[len(signature.parameters) - len(strategies) :]}
        kept = [p for name, p in signature.parameters.items() if name not in drawn]
        skipped.__name__, skipped.__doc__ = test.__name__, test.__doc__
        skipped.__dict__.update(vars(test))  # the marks
        skipped.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return pytest.mark.skip(reason=REASON)(skipped)

    return decorate
