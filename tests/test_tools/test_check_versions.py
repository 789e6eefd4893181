"""tools/check_versions.sh: its arguments, and the page that it writes from pytest's reports."""

from __future__ import annotations

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


def test_a_row_that_does_not_exist_is_one_line(tmp_path):
    command = ['bash', str(ROOT / 'tools/check_versions.sh'), '2.6.0', '1.0']
    done = subprocess.run(command, capture_output=True, text=True, env={'HOME': str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, '') and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()
    assert 'no row 1.0; rows: 2.1.2 2.4.1' in line


@pytest.mark.timeout(120)
def test_the_page_counts_failures_and_reasons_of_each_row(tmp_path):
    (tmp_path / 'test_it.py').write_text(TESTS)
    for row in ('newest', '2.10.0', '2.9.1'):
        report = ['--junitxml', str(tmp_path / f'{row}.xml'), '-p', 'no:cacheprovider']
        subprocess.run([sys.executable, '-m', 'pytest', '-q', *report], cwd=tmp_path)
        page = [str(ROOT / 'tools/versions/page.py'), row, str(tmp_path), str(tmp_path / 'page.md')]
        done = subprocess.run([sys.executable, *page], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f'{row}: 1 passed, 1 failed, 2 skipped; ')
    text = (tmp_path / 'page.md').read_text(encoding='utf-8')
    rows = [line for line in text.splitlines() if ' | 1 | 1 | 2 | 20' in line]
    assert [line.split(' | ')[0] for line in rows] == ['| 2.9.1', '| 2.10.0', '| newest']
    python = '.'.join(map(str, sys.version_info[:3]))
    assert all(f' | {python} | ' in line for line in rows)
    for line in ('- failed: `test_it::test_three[3]`', '- 1 skipped: no such thing here',
                 '- 1 skipped: torch < 9'):  # fmt: skip
        assert text.count(line) == 3
