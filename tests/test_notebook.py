"""The notebook of demo/: its cells run, one after the other, in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / 'demo/switchable_norm.ipynb'
SHORT = {'--train 400 --val 20': '--train 8 --val 4', 'max_iters = 300': 'max_iters = 10'}


def script() -> str:
    """The cells of code as one program, its training short."""
    pytest.importorskip('mmseg')
    cells = json.loads(NOTEBOOK.read_text())['cells']
    text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
    for long, short in SHORT.items():
        assert long in text
        text = text.replace(long, short)
    shell = r"__import__('subprocess').run('\1', shell=True, check=True)"
    return re.sub(r'^!(.*)', shell, text, flags=re.M)


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path: Path) -> None:
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    env = {**os.environ, 'PATH': path, 'MPLBACKEND': 'Agg', 'OMP_NUM_THREADS': '1'}
    program = script() + '\nfigure.savefig("predictions.png")\n'
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'predictions.png').is_file()
    assert "{'mean': {'in': 0." in done.stdout.splitlines()[-1]
