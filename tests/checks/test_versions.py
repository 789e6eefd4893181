"""noxfile.py has the rows of the page of versions, which is made of pytest's reports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.parametrize('n', [1, 2, 3])
def test_three(n):
    if n == 2:
        pytest.skip('no such  thing\\nhere')
    assert n == 1, 'long'

@pytest.mark.skipif(True, reason='torch < 9')
def test_newer(): pass
"""


@pytest.mark.timeout(120)
def test_the_page_counts_failures_and_reasons_of_each_row(tmp_path):
    (tmp_path / 'test_it.py').write_text(TESTS)
    report = ['--junitxml', str(tmp_path / '2.9.1.xml'), '-p', 'no:cacheprovider']
    subprocess.run([sys.executable, '-m', 'pytest', '-q', *report], cwd=tmp_path)
    versions = json.dumps({'Python': '3.12.1', 'torch': '2.9.1', 'mmengine': '0.10.7'})
    for row in ('2.9.1', '2.10.0', 'newest'):
        (tmp_path / f'{row}.xml').write_text((tmp_path / '2.9.1.xml').read_text())
        (tmp_path / f'{row}.json').write_text(versions)
    command = [sys.executable, '-m', 'checks.versions_page', str(tmp_path), 'page.md']
    env = {'PYTHONPATH': str(ROOT / 'tests')}
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    text = (tmp_path / 'page.md').read_text(encoding='utf-8')
    rows = [line for line in text.splitlines() if ' | 1 | 1 | 2 | 20' in line]
    assert [line.split(' | ')[0] for line in rows] == ['| 2.9.1', '| 2.10.0', '| newest']
    assert all(' | 3.12.1 | 2.9.1 | - | - | ' in line for line in rows)
    for line in ('With mmengine 0.10.7.', '- failed: `test_it::test_three[3]`',
                 '- 1 skipped: no such thing here', '- 1 skipped: torch < 9'):  # fmt: skip
        assert text.count(line) == 3


def test_nox_has_the_rows_of_the_page():
    pytest.importorskip('nox')
    command = [sys.executable, '-m', 'nox', '--list', '-f', str(ROOT / 'noxfile.py')]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = set(re.findall(r'versions\((\S+)\)', listed.split('Sessions defined')[1]))
    text = (ROOT / 'docs/reference/versions.md').read_text(encoding='utf-8')
    recorded = set(re.findall(r'^## (\S+)$', text, re.M))
    assert recorded and recorded <= rows
    assert set(re.findall(r"versions\((\S+)\)'", text)) <= rows
