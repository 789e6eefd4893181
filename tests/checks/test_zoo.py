"""Every ready-made config of MMDetection and MMSegmentation trains a step with SN.

    bash tools/run_tests.sh tests/checks/test_zoo.py
    bash tools/run_tests.sh tests/checks/test_zoo.py --every-config --record

Each config is loaded, built with its own norms, switched (`sn_mm.switch_norm_cfg`), built with SN,
relieved of the norms that no config can reach (`sn_mm.convert_switch_norm`, as tools/train.py does)
and trained for one step on two made-up images. A test is skipped whose config has nothing to
switch, needs a package that is not installed, or fails with its own norms too. Nothing is
downloaded.

All 1,504 configs take about an hour of two cores. Their records are kept in
work_dirs/zoo/zoo.jsonl: a run that was stopped goes on there, until the code of sn_mm changes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

import sn_mm
from checks.zoo.check import check_config
from checks.zoo.processes import Limits, run_tasks
from checks.zoo.run import code_version, find_configs, finished
from checks.zoo.table import OK, category, write_report
from sn_mm.output.files import append_record

pytest.importorskip('mmdet')
build_norm_layer = pytest.importorskip('mmcv.cnn').build_norm_layer
MODELS = pytest.importorskip('mmseg.registry').MODELS

ROOT = Path(__file__).parents[2]
RECORD = ROOT / 'docs/records/zoo'
LIMITS = Limits()
# Quick ones: semantic maps; norms converted in place; GroupNorm; proposals; masks.
FEW = [
    'mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py',
    'mmseg::erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py',
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'mmdet::fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py',
    'mmdet::fast_rcnn/fast-rcnn_r50-caffe_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'config' in metafunc.fixturenames:
        every = metafunc.config.getoption('every_config')
        metafunc.parametrize('config', find_configs() if every else FEW)


@pytest.fixture(scope='module')
def record_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The record of a config. All that are asked for in the session run in their order."""
    every = request.config.getoption('every_config')
    folder = ROOT / 'work_dirs/zoo' if every else tmp_path_factory.mktemp('zoo')
    folder.mkdir(parents=True, exist_ok=True)
    names = [
        item.callspec.params['config']
        for item in request.session.items
        if item.path == request.path and 'config' in getattr(item, 'fixturenames', ())
    ]
    command = [sys.executable, '-m', 'checks.zoo.run', folder / 'zoo.jsonl', *names]
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    records: dict[str, dict[str, Any]] = {}
    with (
        (folder / 'output.txt').open('w') as output,
        subprocess.Popen(
            [str(part) for part in command],
            # Forked processes have no use for threads.
            env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        ) as worker,
    ):

        def record_of(name: str) -> dict[str, Any]:
            while name not in records:
                line = worker.stdout.readline()
                assert line, f'no record of {name}: {output.name} says why'
                record = json.loads(line)
                records[record['config']] = record
            return records[name]

        yield record_of
        worker.terminate()
    if request.config.getoption('record'):
        write_record(RECORD, records)


def write_record(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    """Writes the page, unless a config is missing."""
    if missing := find_configs().keys() - records.keys():
        warnings.warn(f'{folder} stays as it is: {len(missing)} configs did not run', stacklevel=2)
    else:
        write_report(folder, list(records.values()))


@pytest.mark.slow
@pytest.mark.timeout(LIMITS.wall_seconds + 100)
def test_a_ready_made_config_trains_a_step_with_sn_and_no_other_norm(
    config: str, record_of: Callable[[str], dict[str, Any]]
) -> None:
    record = record_of(config)
    outcome = category(record)
    if not outcome.is_failure and config not in FEW and outcome != OK:
        pytest.skip(outcome.text)
    assert outcome == OK, record
    assert record['norms_left'] == 0
    assert record['sn_by_config'] + record['converted'] >= sum(record['own_norms'].values())


def test_the_recorded_run_is_of_all_configs_and_has_no_failure() -> None:
    records = json.loads((RECORD / 'zoo.json').read_text())['configs']
    assert {r['config'] for r in records} == set(find_configs())
    assert [r['config'] for r in records if category(r).is_failure] == []


# --- what is run again ----------------------------------------------------------------------------


def test_records_of_other_code_and_errors_are_made_again(tmp_path: Path) -> None:
    log, version = tmp_path / 'zoo.jsonl', code_version()
    for name, own, rest in (
        ('kept', version, {}),
        ('older', '0.1.0+12345678', {}),
        ('failed', version, {'error': 'ended by SIGKILL'}),
    ):
        append_record(log, {'config': name, 'sn_mm': own, 'status': 'ok', **rest})
    assert list(finished(log, version)) == ['kept']


@pytest.mark.parametrize('file', ['layer.py', 'ops/cpu/kernels.c'])
def test_every_change_of_the_code_is_another_version(file: str, tmp_path: Path) -> None:
    package = tmp_path / 'sn_mm'
    shutil.copytree(Path(sn_mm.__file__).parent, package, symlinks=True)
    before = code_version(package)
    assert before == code_version()
    with (package / file).open('a') as source:
        source.write('\n')
    assert code_version(package) != before


def test_a_part_of_the_zoos_does_not_replace_the_record(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match='stays as it is: 1503 configs did not run'):
        write_record(tmp_path, {FEW[0]: {'config': FEW[0]}})
    assert not list(tmp_path.iterdir())


# --- what a failure is ----------------------------------------------------------------------------


@MODELS.register_module()
class NeedsLargeImages(BaseModel):
    """Fails below 128 pixels, with SN or with its own norm as well."""

    def __init__(self, norm_cfg: dict, only_sn: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = build_norm_layer(norm_cfg, 3)[1]
        self.only_sn = only_sn

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str) -> dict:
        if inputs.shape[-1] < 128 and not (self.only_sn and isinstance(self.norm, nn.BatchNorm2d)):
            raise ValueError('too small')
        return {'loss': self.norm(inputs).square().mean()}


@pytest.mark.timeout(60)
@pytest.mark.parametrize('only_sn', [False, True])
def test_larger_images_do_not_hide_what_only_sn_fails_on(only_sn: bool, tmp_path: Path) -> None:
    file = tmp_path / '.mim' / 'config.py'
    file.parent.mkdir()
    norm = {'type': 'BN', 'requires_grad': True}
    preprocessor = {'type': 'SegDataPreProcessor', 'mean': [0.0] * 3, 'std': [255.0] * 3}
    model = {
        'type': 'NeedsLargeImages',
        'norm_cfg': norm,
        'only_sn': only_sn,
        'data_preprocessor': preprocessor,
    }
    file.write_text(f"default_scope = 'mmseg'\nmodel = {model}\n")

    import_module('mmseg.models')  # here, not in each process

    def check(file: Path, progress: Callable[[dict], None]) -> dict:
        torch.set_num_threads(1)
        return check_config(file, {}, progress)

    [(_, record)] = run_tasks([file], check, 1, Limits(free_gib=0))
    assert category(record).is_failure == only_sn, record
    if only_sn:
        assert (record['status'], record['size'], record['own_step']) == ('step', 64, 'ok')
    else:
        assert (record['status'], record['size']) == ('ok', 128)
        assert 'own_step' not in record and 'error' not in record


def burn(seconds: float) -> dict:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return {'status': 'ok'}


def work(task: str, progress) -> dict:  # noqa: ANN001
    progress({'status': 'step'})
    if task == 'dies':
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 'sleeps':
        time.sleep(60)
    if task == 'allocates':
        bytearray(2**33)
    return burn(60 if task == 'burns' else 0)


@pytest.mark.timeout(60)
def test_task_that_dies_or_takes_too_much_gives_a_record() -> None:
    limits = Limits(cpu_seconds=1, memory_gib=6, free_gib=0)
    records = dict(run_tasks(['dies', 'burns', 'allocates', 'ends'], work, 2, limits))
    records.update(run_tasks(['sleeps'], work, 1, Limits(wall_seconds=1)))
    assert records['ends'] == {'status': 'ok'}
    assert records['dies'] == {'status': 'step', 'error': 'ended by SIGKILL'}
    assert records['sleeps'] == {'status': 'step', 'error': 'longer than 1 s'}
    assert records['burns'] == {'status': 'step', 'error': 'more than 1 s of processor time'}
    assert records['allocates'] == {'status': 'step', 'error': 'exit 1'}


@pytest.mark.parametrize(
    ('record', 'text', 'is_failure'),
    [
        ({'status': 'ok', 'norms_left': 0}, 'trains a step with SN', False),
        ({'status': 'ok', 'norms_left': 2}, 'norms left', True),
        ({'status': 'switch', 'error': 'E'}, 'not switched', True),
        ({'status': 'build_sn', 'error': 'E'}, 'does not build with SN', True),
        ({'status': 'step', 'error': 'E'}, 'does not train a step with SN', True),
        (
            {'status': 'step', 'error': 'E', 'own_step': 'E'},
            'does not train a step with its own norms either',
            False,
        ),
        (
            {'status': 'build', 'error': 'please install it by: pip install lap (a.py:1)'},
            'needs lap, which is not installed',
            False,
        ),
    ],
)
def test_only_what_sn_breaks_is_a_failure(record: dict, text: str, is_failure: bool) -> None:
    found = category(record)
    assert (found.text, found.is_failure) == (text, is_failure)
