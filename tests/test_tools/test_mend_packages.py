"""tools/misc/mend_packages.py, on copies of the real packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from misc import mend_packages

ROOT = Path(__file__).parents[2]
USE_TORCHVISION = """
import torch, torchvision
assert torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
try:
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    assert "Couldn't load custom C++ ops" in str(error)
"""


def copy_of(package: str, site: Path, *parts: str) -> Path:
    """Copies an installed package, or some parts of it, and takes back what was mended."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f'{package} is not installed')
    original, folder = Path(spec.origin).parent, site / package
    for part in parts or ('.',):
        ignore = shutil.ignore_patterns('__pycache__', 'drn', '_ext*')
        shutil.copytree(original / part, folder / part, ignore=ignore)
    return folder


def run(site: Path, *command: object) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': str(site)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=site, env=env, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason='torchvision goes with this torch')
def test_torchvision_for_cuda_imports_beside_a_cpu_torch_and_a_second_run_changes_nothing(tmp_path):
    folder = copy_of('torchvision', tmp_path)
    extension = folder / 'extension.py'
    extension.write_text(extension.read_text().replace(mend_packages.DECLARATIONS, ''))
    if run(tmp_path, '-c', 'import torchvision').returncode == 0:
        pytest.skip('a torchvision for the CPU')
    done = run(tmp_path, ROOT / 'tools/misc/mend_packages.py')
    assert done.returncode == 0 and str(folder) in done.stdout, done.stderr
    used = run(tmp_path, '-c', USE_TORCHVISION)
    assert used.returncode == 0, used.stderr
    mended = extension.read_text()
    assert str(folder) not in run(tmp_path, ROOT / 'tools/misc/mend_packages.py').stdout
    assert extension.read_text() == mended


def test_mmaction_gets_the_module_that_it_lacks(tmp_path):
    folder = copy_of('mmaction', tmp_path, 'models/localizers')
    assert mend_packages.mend_mmaction(folder)
    done = run(folder / 'models/localizers', '-c', 'from drn.drn import DRN; DRN(1, a=2)')
    assert 'NotImplementedError: mmaction2 1.2.0 was published without DRN' in done.stderr
    assert not mend_packages.mend_mmaction(folder)


@pytest.mark.slow
def test_mmcv_lite_imports_its_operators_which_say_that_they_are_missing(tmp_path, monkeypatch):
    folder = copy_of('mmcv', tmp_path)
    assert not mend_packages.mend_mmcv(folder)  # without its operators the set-up is to fail
    metadata = tmp_path / 'mmcv_lite-2.1.0.dist-info/METADATA'
    metadata.parent.mkdir()
    metadata.write_text('Metadata-Version: 2.1\nName: mmcv-lite\nVersion: 2.1.0\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert mend_packages.mend_mmcv(folder)
    call = "import mmcv.ops; mmcv.ops.RoIPool(1)(*map(__import__('torch').ones, ((1, 1), (1, 5))))"
    said = run(tmp_path, '-c', call).stderr
    assert 'mmcv-lite has no operators; roi_pool_forward needs mmcv' in said
    assert not mend_packages.mend_mmcv(folder)


def test_what_is_not_installed_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(mend_packages, 'find_spec', lambda name: None)
    mend_packages.main()
    assert capsys.readouterr().out == ''
