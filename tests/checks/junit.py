"""What pytest wrote with ``--junitxml``."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Report(NamedTuple):
    """How the tests of a run ended.

    Attributes:
        date: Of the run, as in 2026-11-25.
        passed: Their number.
        failed: Their names; a file that cannot be imported is one.
        skipped: Their number by reason.
    """

    date: str
    passed: int
    failed: list[str]
    skipped: Counter[str]


def read_report(file: Path) -> Report:
    """Reads a report."""
    suite = ElementTree.parse(file).getroot()[0]
    failed, skipped, passed = [], Counter[str](), 0
    for case in suite.iter('testcase'):
        skip = case.find('skipped')
        if case.find('failure') is not None or case.find('error') is not None:
            failed.append(f'{case.get("classname")}::{case.get("name")}')
        elif skip is not None:
            skipped[_reason(skip)] += 1
        else:
            passed += 1
    return Report(suite.get('timestamp', '')[:10], passed, failed, skipped)


def _reason(skip: ElementTree.Element) -> str:
    whole = re.search(r"Skipped: (.*)'\)", skip.text or '')  # a file of tests
    return ' '.join((whole[1] if whole else skip.get('message') or 'no reason').split())
