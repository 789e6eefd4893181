"""What stands in a config: its dictionaries, and the names of its types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def dicts(node: Any) -> Iterator[dict]:
    """All dictionaries in nested dictionaries and lists, each before those inside it."""
    children: Iterable[Any] = node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        yield node
        children = dict.values(node)  # not ConfigDict's, which import what a lazy config names
    for child in children:
        yield from dicts(child)


def type_name(kind: Any) -> str:
    """The name of a config's type, without its scope; a type may be a class."""
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]
