"""Files that appear under their name only when they are complete and on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path, renamed to ``path`` on success.

    A process that is killed leaves the old file, or none, under the name: never half of one.

    Args:
        path: The file to make or replace. Its folder is made if it does not exist.
        temporary: The temporary path, in the same folder. Default: one with the same suffix that
            no other process or thread has.

    Yields:
        The temporary path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if temporary is None:
        temporary = target.with_name(f'.{target.stem}.{os.urandom(4).hex()}{target.suffix}')
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Brings the content of a file, or the names of the files in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
