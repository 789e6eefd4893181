"""The wheel: every file of the package, the version, the command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import sn_mm

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    source = tmp_path / 'source'
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / 'sn_mm', source / 'sn_mm', ignore=ignore)
    for name in ('pyproject.toml', 'setup.py', 'README.md'):
        shutil.copy(ROOT / name, source)
    command = ['pip', 'wheel', source, '-w', tmp_path, '--no-deps', '--no-build-isolation']
    subprocess.run([sys.executable, '-m', *command], check=True, capture_output=True)
    (file,) = tmp_path.glob('*.whl')
    with ZipFile(file) as wheel:
        packed = {name: wheel.read(name).decode() for name in wheel.namelist()}
    (info,) = {name.split('/')[0] for name in packed if '.dist-info/' in name}
    files = {str(p.relative_to(ROOT)) for p in (ROOT / 'sn_mm').rglob('*') if p.is_file()}
    files = {name for name in files if '__pycache__' not in name}
    assert {name for name in packed if '.dist-info/' not in name} == files
    metadata = Parser().parsestr(packed[f'{info}/METADATA'])
    assert metadata['Version'] == sn_mm.__version__
    assert metadata['Requires-Python'] == '>=3.9'
    assert packed[f'{info}/entry_points.txt'].split() == [
        '[console_scripts]', 'sn-mm', '=', 'sn_mm.cli.main:main',
    ]  # fmt: skip
