"""The wheel: its files, its metadata, and what it does where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from small_runs import DETECTION, write_split

import sn_mm

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, '-m', 'pip', *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout, with the leftovers of running its commands."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    for name in ('sn_mm', 'sn_mm_cli', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'model-index.yml'):
        shutil.copy(ROOT / name, source)
    (source / 'tools/__pycache__').mkdir(exist_ok=True)
    (source / 'tools/__pycache__/train.pyc').touch()
    pip('wheel', source, '-w', folder, '--no-deps', '--no-build-isolation')
    (file,) = folder.glob('*.whl')
    return file


@pytest.fixture(scope='module')
def site(wheel: Path) -> Path:
    """A folder into which the wheel is installed."""
    folder = wheel.parent / 'site'
    pip('install', '--no-deps', '--no-index', '--target', folder, wheel)
    return folder


def run(site: Path, folder: Path, *command: str | Path) -> subprocess.CompletedProcess:
    """Runs a command of the installed package in a folder that is not the checkout."""
    env = {**os.environ, 'PYTHONPATH': str(site), 'CUDA_VISIBLE_DEVICES': '-1'}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
    return {name for name in found if '__pycache__' not in name}


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    (info,) = {name.split('/')[0] for name in packed if '.dist-info/' in name}
    metadata = Parser().parsestr(packed[f'{info}/METADATA'].decode())
    assert metadata['Version'] == sn_mm.__version__
    assert metadata['Requires-Python'] == '>=3.9'
    assert packed[f'{info}/entry_points.txt'].decode().split() == [
        '[console_scripts]', 'sn-mm', '=', 'sn_mm_cli.main:main',
    ]  # fmt: skip

    mim = {name for name in packed if name.startswith('sn_mm/.mim/')}
    assert {name for name in packed if '.dist-info/' not in name} - mim == {
        f'{package}/{name}'
        for package in ('sn_mm', 'sn_mm_cli')
        for name in files(ROOT / package)
        if not name.startswith('.mim/')
    }
    scripts = (
        'train.py',
        'test.py',
        'dist_train.sh',
        'dist_test.sh',
        'slurm_train.sh',
        'slurm_test.sh',
    )
    assert mim == {
        'sn_mm/.mim/model-index.yml',
        *(f'sn_mm/.mim/configs/{name}' for name in files(ROOT / 'configs')),
        *(f'sn_mm/.mim/tools/{name}' for name in scripts),
    }


@pytest.mark.timeout(600)
def test_an_installed_package_trains_from_its_own_recipe_in_any_folder(
    site: Path, tmp_path: Path
) -> None:
    pytest.importorskip('mmdet')
    for split in ('train', 'val'):
        write_split(tmp_path / 'data', split, 2)
    recipe = 'sn_mm::mask_rcnn/mask-rcnn_r50-sn_fpn_8xb2-2x_coco.py'
    small = DETECTION.split("'mmdet::_base_/default_runtime.py',\n]")[1]
    small += "model['roi_head']['bbox_head']['conv_out_channels'] = 8\nval_cfg = None\n"
    small += 'val_dataloader = val_evaluator = None\n'
    (tmp_path / 'small.py').write_text(f"_base_ = '{recipe}'\n{small}")
    done = run(site, tmp_path, site / 'bin/sn-mm', 'train', 'small.py', '--work-dir', 'out')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out/epoch_1.pth').is_file()

    shown = run(site, tmp_path, sys.executable, '-c', 'import sn_mm; print(sn_mm.__file__)')
    assert Path(shown.stdout.strip()).parent == site / 'sn_mm'


def test_an_installed_recipe_and_script_are_found_by_name(site: Path, tmp_path: Path) -> None:
    pytest.importorskip('mmseg')
    config = 'sn_mm::fcn/fcn_r50-d8-sn_8xb2-25k_ade20k-512x512.py'
    options = ['--cfg-options', 'model.pretrained=None']
    script = site / 'sn_mm/.mim/tools/train.py'
    for command in ([site / 'bin/sn-mm', 'train'], [sys.executable, script]):
        done = run(site, tmp_path, *command, config, *options)
        (line,) = (line for line in done.stderr.splitlines() if 'error:' in line)
        assert done.returncode == 2 and 'data/ade/ADEChallengeData2016' in line


def test_several_processes_of_an_installed_command_refuse_bad_input_with_one_line(
    site: Path, tmp_path: Path
) -> None:
    pytest.importorskip('mmseg')
    done = run(site, tmp_path, site / 'bin/sn-mm', 'train', 'none.py', '--processes', '2')
    (line,) = (line for line in done.stderr.splitlines() if 'error:' in line)
    assert done.returncode == 2 and line.startswith('sn-mm train: error: config none.py')
    assert 'Traceback' not in done.stderr
