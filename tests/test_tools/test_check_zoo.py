"""tools/check_zoo.py: a sample of the zoos, its record, its limits and what it calls a failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

for package in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytest.importorskip('psutil')

ROOT = Path(__file__).parents[2]
RECORD = ROOT / 'docs/zoo'
sys.path.insert(0, str(ROOT / 'tools'))

from zoo.processes import Limits, run_tasks  # noqa: E402
from zoo.table import category  # noqa: E402

SMALL = 'mmseg::cgnet/*-512x1024.py'


def check_zoo(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
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


@pytest.mark.timeout(300)
def test_sample_of_the_zoos_trains_a_step_with_sn_and_no_other_norm(tmp_path: Path) -> None:
    record = json.loads((RECORD / 'zoo.json').read_text())
    (tmp_path / 'zoo.json').write_text(json.dumps(record))
    done = check_zoo(tmp_path, '--sample', 12, '--max-seconds', 3, '--out', tmp_path)
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


@pytest.mark.timeout(300)
def test_finished_configs_are_not_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = check_zoo(tmp_path, '--only', SMALL, '--build-only', '--out', tmp_path)
        assert done.returncode == 0, done.stderr
    assert [result['status'] for result in read(tmp_path)] == ['built']
    assert check_zoo(tmp_path, '--only', SMALL, '--out', tmp_path).returncode == 0
    assert [result['status'] for result in read(tmp_path)] == ['built', 'ok']
    assert 'trains a step with SN' in (tmp_path / 'README.md').read_text()


def test_unknown_name_is_one_clear_line(tmp_path: Path) -> None:
    done = check_zoo(tmp_path, '--only', 'mmdet::nothing', '--out', tmp_path)
    assert done.returncode == 2
    assert done.stderr == 'check_zoo.py: error: --only mmdet::nothing: no config of this name\n'


def test_recorded_run_has_no_failure() -> None:
    record = json.loads((RECORD / 'zoo.json').read_text())
    assert [r['config'] for r in record['configs'] if category(r).is_failure] == []
    assert sum(sum(counts.values()) for counts in record['totals'].values()) == 823 + 681


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
    records.update(run_tasks(['sleeps'], work, 1, Limits(wall_seconds=3)))
    assert records['ends'] == {'status': 'ok'}
    assert records['dies'] == {'status': 'step', 'error': 'ended by SIGKILL'}
    assert records['sleeps'] == {'status': 'step', 'error': 'longer than 3 s'}
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
