"""What ``import sn_mm`` lets ``torch.load`` read in the whole process, as docs/security.md says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sn_mm.engine.safe_globals import MMENGINE_ALLOWS, TAKES_NAMES

ROOT = Path(__file__).parents[2]
ADDED = """
import json, sys, torch, torch.serialization as s
{before}
names = lambda: {{x[1] if isinstance(x, tuple) else f'{{x.__module__}}.{{x.__qualname__}}'
                 for x in s.get_safe_globals()}}
known = names()
import sn_mm
print(json.dumps([n for n in names() - known if not n.startswith('torch.')]))  # its own
"""

pytestmark = pytest.mark.skipif(not TAKES_NAMES, reason='torch < 2.6 has no such list')


def added(before: str = '') -> set[str]:
    code = ADDED.format(before=before)
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.skipif(MMENGINE_ALLOWS, reason='this mmengine allows names by itself')
@pytest.mark.slow
def test_the_page_names_exactly_what_an_import_adds():
    page = (ROOT / 'docs/security.md').read_text(encoding='utf-8')
    documented = set(re.findall(r'^\| `([^`]+)` \|', page, re.MULTILINE))
    names = added()
    states = {name.partition('\n')[2] for name in names if '\n' in name}
    assert len(documented) > 5 and {name for name in names if '\n' not in name} == documented
    assert all(f'`numpy.dtypes.{name}`' in page for name in states - {'ndarray'})
    assert states == {'ndarray', 'Float32DType', 'Float64DType', 'Int64DType'}


@pytest.mark.slow
def test_without_mmengine_an_import_adds_nothing():
    assert added("sys.modules['mmengine'] = None") == set()
