"""tools/check_gpu.sh on the CPU: the whole command, its bounds and its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from .gpu import run as check_gpu
from .gpu.bounds import mark_bounds
from .gpu.processes import Result
from .gpu.report import make_report, table

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_command_on_the_cpu(tmp_path):
    command = ['bash', ROOT / 'tools' / 'check_gpu.sh', '--out', tmp_path / 'out']
    env = {**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    steps = {step['name']: step for step in report['steps']}
    assert {name: step['status'] for name, step in steps.items()} == {
        'machine': 'done',
        'tests': 'done',
        'tests with SN_MM_BACKEND=aten': 'done',
        'nccl': 'done',
        'launches': 'not measured',
        'host_time': 'done',
        'layers': 'done',
        'training': 'done',
        'compiled': 'done',
    }
    assert report['quick'] and report['machine']['torch'] == torch.__version__
    default, aten = (steps[name]['records'][0] for name in list(steps)[1:3])
    assert (default['backend'], aten['backend']) == ('default', 'aten')
    assert default['passed'] == aten['passed'] > 100 and default['failed'] == aten['failed'] == 0
    layers = {r['layer'] for r in steps['layers']['records']}
    assert layers == {'BatchNorm', 'SN', 'SN, synchronized', 'GroupNorm'}
    assert {(r['dtype'], r['format']) for r in steps['layers']['records']} == {
        (dtype, memory_format)
        for dtype in ('float32', 'float16', 'bfloat16')
        for memory_format in ('contiguous', 'channels_last')
    }
    assert [r['norm'] for r in steps['compiled']['records']] == ['BatchNorm', 'SN']
    bounds = {(bound['mark'], bound['note']) for bound in report['bounds']}
    assert bounds == {('not measured', 'no GPU is visible')}
    written = (tmp_path / 'out' / 'report.md').read_text()
    assert written in done.stdout and '# Check on cpu' in written
    assert (tmp_path / 'out' / 'layers.png').exists()


# --- bounds ---------------------------------------------------------------------------------------


def layer_record(ratio: float, share: float, **changes):
    record = {
        'model': 'ResNet',
        'shape': [64, 64, 112, 112],
        'dtype': 'float32',
        'format': 'contiguous',
        'bytes': 300e6,
        'layer': 'SN',
        'ratio': ratio,
        'copy_share': share,
    }
    return {**record, **changes}


def result(name: str, records: list, status: str = 'done', reason: str = '') -> Result:
    return Result(name, status, reason, 1.0, records)


def marks(*results: Result, on_gpu: bool = True):
    """Value, mark and note of the bounds of contiguous float32 inputs, training and launches."""
    names = {
        'ResNet inputs >= 16 MB, float32, contiguous': 'time',
        'inputs >= 256 MB, float32, contiguous': 'bandwidth',
        'synchronized, eager': 'eager',
        'SN, compiled': 'compiled',
        'training forward': 'forward',
        'layer, backward': 'backward',
        'evaluation': 'eval',
    }
    found = mark_bounds(results, on_gpu)
    assert len(found) == 17
    return {
        short: (mark.value, mark.mark, mark.note)
        for part, short in names.items()
        for mark in found
        if part in mark.name
    }


def test_the_worst_input_decides_a_bound():
    records = [layer_record(0.9, 0.95), layer_record(1.0, 0.9, shape=[1, 2, 3, 4])]
    found = marks(result('layers', records))
    assert found['time'] == (1.0, 'held', '1x2x3x4')
    assert found['bandwidth'] == (0.9, 'held', '1x2x3x4')
    found = marks(result('layers', [*records, layer_record(1.01, 0.89, shape=[5, 6])]))
    assert found['time'] == (1.01, 'not held', '5x6')
    assert found['bandwidth'] == (0.89, 'not held', '5x6')


def test_inputs_that_no_bound_is_for_do_not_count():
    others = [
        layer_record(9, 0.1, bytes=15e6),
        layer_record(9, 0.95, model='FPN'),
        layer_record(9, 0.1, layer='GroupNorm'),
        layer_record(9, 0.1, dtype='bfloat16'),
        layer_record(9, 0.1, format='channels_last'),
        layer_record(0.9, 0.1, bytes=255e6),
    ]
    found = marks(result('layers', [layer_record(0.8, 0.99), *others]))
    assert found['time'][:2] == (0.9, 'held') and found['bandwidth'][:2] == (0.95, 'held')
    missing = (None, 'not measured', 'no such input in this run')
    assert marks(result('layers', others[:1]))['time'] == missing


def test_a_step_that_died_can_only_show_that_a_bound_is_not_held():
    died = ('failed', 'stopped after 180 s')
    assert marks(result('layers', [layer_record(0.9, 0.95)], *died))['time'] == (
        None, 'not measured', 'stopped after 180 s',
    )  # fmt: skip
    found = marks(result('layers', [layer_record(1.2, 0.95)], *died))
    assert found['time'][:2] == (1.2, 'not held')


def test_a_value_that_is_not_finite_holds_nothing():
    found = marks(result('layers', [layer_record(0.9, 0.95), layer_record(float('nan'), 0.95)]))
    assert found['time'][1] == 'not measured' and found['bandwidth'][1] == 'held'


def test_training_steps_are_compared_with_synchronized_batch_norm():
    def record(norm: str, ms: float):
        return {'norm': norm, 'step': {'median': ms}}

    eager = [record('SN, synchronized', 51.0), record('SyncBatchNorm', 50.0), record('SN', 99.0)]
    compiled = [record('SN', 42.0), record('BatchNorm', 40.0)]
    found = marks(result('training', eager), result('compiled', compiled))
    assert found['eager'] == (1.02, 'held', '') and found['compiled'] == (1.05, 'not held', '')
    broken = [compiled[1], {'norm': 'SN', 'error': 'RuntimeError: no'}]
    found = marks(result('compiled', broken, 'failed', 'SN: RuntimeError: no'))
    assert found['compiled'] == (None, 'not measured', 'SN: RuntimeError: no')
    assert found['eager'] == (None, 'not measured', 'the step did not run')


def test_launches_of_the_layer_are_counted():
    def record(layer: str, forward: int, backward: int, evaluation: int):
        started = {'forward': forward, 'backward': backward, 'eval': evaluation}
        started = {kind: ['kernel'] * count for kind, count in started.items()}
        return {'layer': layer, 'dtype': 'float32', 'format': 'contiguous', 'started': started}

    records = [record('SN', 5, 7, 2), record('SN, synchronized', 8, 9, 3)]
    found = marks(result('launches', records))
    assert found['forward'] == (5, 'held', 'float32, contiguous')
    assert found['backward'] == (7, 'not held', 'float32, contiguous')
    assert found['eval'][:2] == (2, 'held')


def test_no_bound_is_held_without_a_gpu():
    found = marks(result('layers', [layer_record(0.5, 0.99)]), on_gpu=False)
    assert set(found.values()) == {(None, 'not measured', 'no GPU is visible')}


# --- the command ----------------------------------------------------------------------------------


def test_no_step_starts_after_the_deadline(tmp_path):
    steps = [check_gpu.Step('layers', 100)]
    (done,) = check_gpu.run_steps(tmp_path, True, steps, deadline=time.monotonic())
    assert (done.status, done.reason) == ('failed', 'no time left of 530 s')


@pytest.mark.parametrize('status', ['failed', 'not measured'])
def test_exit_status_tells_of_failures_only(status, tmp_path, monkeypatch, capsys):
    def run_steps(out, quick, steps, deadline):
        return [result(step.name, [], status, 'a reason') for step in steps]

    monkeypatch.setattr(check_gpu, 'run_steps', run_steps)
    monkeypatch.setattr(sys, 'argv', ['check_gpu', '--out', str(tmp_path), '--quick'])
    with pytest.raises(SystemExit) as exited:
        check_gpu.main()
    assert exited.value.code == (status == 'failed')
    shown = capsys.readouterr().out
    assert 'the device did not answer' in shown and 'a reason' in shown


@pytest.mark.parametrize('python', ['no-such-python', 'false'])
def test_a_python_that_does_not_run_is_one_line(python):
    command = ['bash', ROOT / 'tools' / 'check_gpu.sh']
    env = {**os.environ, 'PYTHON': python}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said == f'check_gpu: PYTHON={python} is not a python that runs'


# --- the report -----------------------------------------------------------------------------------


def test_report_of_all_kinds_of_records():
    measured = {'layer': 'SN', 'dtype': 'float32', 'format': 'contiguous'}
    not_run = {'no reason': 2}
    counts = {'passed': 3, 'failed': 0, 'skipped': 2}
    results = [
        result('tests', [{'backend': 'default', **counts, 'not_run': not_run}]),
        result(
            'launches',
            [{**measured, 'started': {'forward': ['k'] * 7, 'backward': [], 'eval': []}}],
        ),
        result('training', [{'norm': 'SN', 'error': 'RuntimeError'}], 'failed', 'SN: RuntimeError'),
        result('layers', [{**layer_record(0.5, 0.9), 'copy_gb_per_s': 2000.0}]),
    ]
    report = make_report(
        {'device': 'A GPU', 'torch': '2'}, results, mark_bounds(results, True), False
    )
    assert report.startswith('# Check on A GPU\n\ntorch 2\n\n## Steps')
    cells = [tuple(c.strip() for c in row.split('|')[1:-1]) for row in report.split('\n')]
    assert ('default', '3', '0', '2', '2 x no reason') in cells
    assert ('SN', 'float32, contiguous', '7', '0', '0') in cells
    assert ('training', 'failed', '1', 'SN: RuntimeError') in cells
    assert ('SN', 'eager', '-', '-', 'RuntimeError') in cells
    layer = '0.50', '-', '-', '-', '90%', '2000'
    assert ('ResNet 64x64x112x112', 'float32, contiguous', *layer) in cells


def test_tables_are_aligned():
    assert table(('a', 'long'), [('wide', 'b')]) == (
        '| a    | long |\n|------|------|\n| wide | b    |'
    )
