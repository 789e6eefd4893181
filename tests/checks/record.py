"""What a check has found, written into the page of docs/records/ that shows it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch

from sn_mm.benchmark.machine import describe

RECORDS = Path(__file__).parents[2] / 'docs/records'


def write_record(page: str, name: str, text: str) -> None:
    """Replaces what stands in a page between ``<!-- record: NAME -->`` and ``<!-- end -->``.

    Args:
        page: The file in docs/records/.
        name: Of the record, as the page may have several.
        text: Markdown.
    """
    before, _, after = _split(page, name)
    (RECORDS / page).write_text(f'{before}\n\n{text}\n\n{after}')


def read_record(page: str, name: str) -> str:
    """What :func:`write_record` has written."""
    return _split(page, name)[1]


def _split(page: str, name: str) -> tuple[str, str, str]:
    mark = rf'.*<!-- record: {re.escape(name)} -->'
    found = re.fullmatch(rf'({mark})(.*?)(<!-- end -->.*)', (RECORDS / page).read_text(), re.S)
    assert found, f'docs/records/{page} has no record {name!r}'
    return found[1], found[2].strip(), found[3]


def machine() -> str:
    """Date, machine and code of a record, in one line."""
    found = describe(torch.device('cpu'))
    return (
        f'{found["date"]}, {found["cpu"]}, {found["cores"]} cores, torch {found["torch"]}, '
        f'sn_mm {found["sn_mm"]}{_commit()}'
    )


def _commit() -> str:
    """The commit that is checked out, ``' at abc1234'``; nothing where there is no git."""
    command = ['git', '-C', str(RECORDS), 'rev-parse', '--short', 'HEAD']
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f' at {found.stdout.strip()}' if found.returncode == 0 else ''
