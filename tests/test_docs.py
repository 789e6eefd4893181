"""The site of docs/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """A link to a page or heading that is not there, a name that the API page lacks: a warning."""
    pytest.importorskip('sphinx')
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-b', 'html', '-d']
    result = subprocess.run(
        [*command, tmp_path / 'doctrees', 'docs', tmp_path / 'site'],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '<math' in (tmp_path / 'site/layer.html').read_text()
