"""Checks before files are written, and logs of one JSON object a line."""

from __future__ import annotations

import json
import os
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
