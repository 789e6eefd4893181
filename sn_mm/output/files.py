"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


def check_folder(name: str, path: str | Path) -> None:
    """Checks that files can be written into a folder, before there is something to write.

    Args:
        name: Of the argument that names it.
        path: The folder; it need not exist yet.

    Raises:
        InputError: It, or the folder that it would be made in, is a file or may not be written to.
    """
    folder = Path(path).absolute()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = 'may not be written to' if nearest.is_dir() else 'is a file'
        raise InputError(f'{name}: {os.path.relpath(nearest)} {reason}, a folder is needed')


def check_file(name: str, path: str | Path) -> None:
    """Checks that a file can be written, before there is something to write.

    Raises:
        InputError: It is a folder, or :func:`check_folder` refuses the folder around it.
    """
    if Path(path).is_dir():
        raise InputError(f'{name} must be a file, {path} is a folder')
    check_folder(name, Path(path).parent)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path, renamed to ``path`` on success.

    Args:
        path: The file to make or replace. Its folder is made if it does not exist.

    Yields:
        A path in the same folder with the same suffix.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.stem}.{os.getpid()}{target.suffix}')
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_records(log: Path, key: str) -> dict[str, dict]:
    """The last record of each value of ``key`` in a log of one JSON object a line.

    A line that was cut off does not count; a log that is not there is empty.
    """
    records = {}
    for line in log.read_text().splitlines() if log.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record[key]] = record
    return records


def append_record(log: Path, record: dict) -> None:
    """Adds a line to such a log, whose last one may have been cut off."""
    with log.open('a+b') as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b'\n':
                file.write(b'\n')
        file.write(json.dumps(record).encode() + b'\n')
