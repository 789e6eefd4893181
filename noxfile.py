"""Tests with other versions of Python, torch and the toolboxes, an environment for each row.

    nox                                  # all rows, then docs/reference/versions.md
    nox -s 'versions(2.4.1)' page        # one row, and the page with it
    nox --list

Environments stay in .nox, several GB each. nox takes the Python of a row from the PATH (with pyenv:
after `pyenv shell 3.11 3.9 3.10 3.12 3.13`), or has uv install it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import nox

nox.options.default_venv_backend = 'uv|virtualenv'
nox.options.reuse_venv = 'yes'
nox.options.error_on_missing_interpreters = True

REPORTS = Path(__file__).parent / 'work_dirs/versions'
# mmengine finds configs with pkg_resources, which setuptools 82 dropped.
TESTS = ('setuptools<82', 'pytest', 'pytest-timeout', 'hypothesis', 'expecttest', 'psutil')
INSTALLED = """
import json, platform
from importlib.metadata import distributions
versions = {d.metadata['Name']: d.version for d in distributions()}
print(json.dumps({'Python': platform.python_version(), **versions}))
"""


class Row(NamedTuple):
    """An environment; without ``torch`` it is that of tools/setup_env.sh."""

    python: str
    torch: str = ''
    others: tuple[str, ...] = ('mmengine',)
    opencv: str = 'opencv-python-headless'
    tests: tuple[str, ...] = ('-m', 'not slow')


ROWS = {
    # torch 2.1 was built for NumPy 1.
    '2.1.2': Row('3.9', 'torch==2.1.2', ('mmengine', 'numpy<2'), 'opencv-python-headless<4.12'),
    '2.4.1': Row('3.10', 'torch==2.4.1'),
    '2.6.0': Row('3.11', 'torch==2.6.0'),
    # The interpreter of its Triton fails with later NumPy.
    '2.9.1': Row('3.12', 'torch==2.9.1', ('mmengine', 'numpy<2.4')),
    '2.13.0': Row('3.13', 'torch==2.13.0'),
    'newest': Row('3.13', 'torch'),
    # The maintained forks of the toolboxes.
    'onedl': Row(
        '3.11',
        'torch==2.13.0',
        ('onedl-mmengine', 'onedl-mmdetection', 'onedl-mmsegmentation', 'ftfy', 'regex'),
    ),
    # Recipes of mmpretrain and mmaction2.
    'mmpretrain': Row('3.11', tests=('tests/test_configs', 'tests/checks/test_recipes.py')),
}


@nox.session
@nox.parametrize('python,row', [nox.param(r.python, name, id=name) for name, r in ROWS.items()])
def versions(session: nox.Session, row: str) -> None:
    """The tests with the versions of one row."""
    _, torch, others, opencv, tests = ROWS[row]
    if torch:
        session.install(torch, *TESTS)
        if row == 'onedl':  # built apart from torch, onedl-mmcv has no operators
            session.install('ninja', 'wheel')
            build = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': '0'}
            session.install('--no-build-isolation', 'onedl-mmcv', env=build)
        session.install(torch, *others)
        # mmengine asks for opencv-python, which wants libGL and overwrites the headless one.
        session.install('--no-deps', '--force-reinstall', opencv)
    else:
        python = str(Path(session.bin) / 'python')
        session.run('bash', 'tools/setup_env.sh', external=True, env={'SN_MM_PYTHON': python})
    REPORTS.mkdir(parents=True, exist_ok=True)
    installed = session.run('python', '-c', INSTALLED, silent=True)
    (REPORTS / f'{row}.json').write_text(json.dumps(json.loads(installed)))
    report = REPORTS / f'{row}.xml'
    report.unlink(missing_ok=True)
    pytest = ('pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={report}')
    session.run('python', '-m', *pytest, *tests, env={'PYTHONPATH': str(Path(__file__).parent)})


@nox.session(python=False)
def page(session: nox.Session) -> None:
    """docs/reference/versions.md, from the reports of the rows that ran."""
    command = ('-m', 'checks.versions_page', str(REPORTS), 'docs/reference/versions.md')
    session.run(sys.executable, *command, external=True, env={'PYTHONPATH': 'tests'})
