"""tools/check_zoo.py: a sample of the zoos, its record, its limits and what it calls a failure."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

import check_zoo
from zoo.check import check_config
from zoo.processes import Limits, run_tasks
from zoo.table import category

pytest.importorskip('mmdet')
build_norm_layer = pytest.importorskip('mmcv.cnn').build_norm_layer
MODELS = pytest.importorskip('mmseg.registry').MODELS

ROOT = Path(__file__).parents[2]
RECORD = ROOT / 'docs/zoo'

SMALL = 'mmseg::cgnet/*-512x1024.py'


def run(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Runs the command on a log of its own."""
    command = [sys.executable, ROOT / 'tools/check_zoo.py', '--log', folder / 'zoo.jsonl']
    return subprocess.run(
        [str(part) for part in (*command, *options)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=290,
    )


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / 'zoo.jsonl').read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sample_of_the_zoos_trains_a_step_with_sn_and_no_other_norm(tmp_path: Path) -> None:
    record = json.loads((RECORD / 'zoo.json').read_text())
    done = run(tmp_path, '--sample', 12, '--max-seconds', 3)
    assert done.returncode == 0, done.stdout + done.stderr
    results = read(tmp_path)
    assert len(results) == 12
    before = {r['config']: r for r in record['configs']}
    for result in results:
        found = category(result)
        assert found == category(before[result['config']]) or 'not installed' in found.text
        if result['status'] == 'ok':
            assert result['norms_left'] == 0
            assert result['sn_by_config'] + result['converted'] >= sum(result['own_norms'].values())


def test_finished_configs_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ['check_zoo.py', '--log', str(tmp_path / 'zoo.jsonl'), '--only', SMALL]
    monkeypatch.setattr(sys, 'argv', [*command, '--build-only'])
    for _ in range(2):
        check_zoo.main()
    assert [result['status'] for result in read(tmp_path)] == ['built']
    assert steps_left(tmp_path) == 1
    monkeypatch.setattr(sys, 'argv', command)
    check_zoo.main()
    assert [result['status'] for result in read(tmp_path)] == ['built', 'ok']
    assert 'trains a step with SN' in (tmp_path / 'README.md').read_text()
    assert steps_left(tmp_path) == 0


@pytest.mark.parametrize(
    'part',
    [
        ['--only', 'mmdet::*'],
        ['--sample', '0'],
        ['--max-seconds', '0'],
        ['--toolbox', 'mmdet'],
        ['--build-only'],
    ],
    ids=lambda part: part[0],
)
def test_part_of_the_zoos_does_not_replace_the_record(
    part: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ['check_zoo.py', '--log', str(tmp_path / 'zoo.jsonl')]
    monkeypatch.setattr(sys, 'argv', log)
    assert check_zoo.parse_args().out == RECORD
    monkeypatch.setattr(sys, 'argv', [*log, *part])
    assert check_zoo.parse_args().out == tmp_path
    monkeypatch.setattr(sys, 'argv', [*log, *part, '--out', str(tmp_path / 'page')])
    assert check_zoo.parse_args().out == tmp_path / 'page'


def test_times_are_known_of_what_was_run_whole(tmp_path: Path) -> None:
    rows = [
        {'config': 'whole', 'status': 'ok', 'cpu_s': 2.5},
        {'config': 'same', 'status': 'ok', 'cpu_s': 0.1, 'same_model_as': 'whole'},
        {'config': 'killed', 'status': 'step', 'error': 'ended by SIGKILL'},
        {'config': 'built', 'status': 'built', 'cpu_s': 0.3},
    ]
    (tmp_path / 'zoo.json').write_text(json.dumps({'configs': rows}))
    assert check_zoo.recorded_seconds(tmp_path / 'zoo.json') == {'whole': 2.5, 'same': 2.5}


def test_unknown_name_is_one_clear_line(tmp_path: Path) -> None:
    done = run(tmp_path, '--only', 'mmdet::nothing')
    assert done.returncode == 2
    assert done.stderr == 'check_zoo.py: error: --only mmdet::nothing: no config of this name\n'


def test_recorded_run_has_no_failure() -> None:
    record = json.loads((RECORD / 'zoo.json').read_text())
    assert [r['config'] for r in record['configs'] if category(r).is_failure] == []
    assert sum(sum(counts.values()) for counts in record['totals'].values()) == 823 + 681


def steps_left(folder: Path) -> int:
    """How many steps the page says are still to be taken."""
    found = re.search(r'the step of (\d+) configs', (folder / 'README.md').read_text())
    return int(found[1]) if found else 0


def test_recorded_run_took_every_step_that_its_page_does_not_call_unfinished() -> None:
    record = json.loads((RECORD / 'zoo.json').read_text())
    built = [r['config'] for r in record['configs'] if r['status'] == 'built']
    assert len(built) == steps_left(RECORD)


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

    def check(file: Path, progress: Callable[[dict], None]) -> dict:
        torch.set_num_threads(1)
        return check_config(file, {}, True, progress)

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
