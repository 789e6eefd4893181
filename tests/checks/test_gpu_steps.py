"""The steps of tools/check_gpu.sh: their processes, the choice of tests, their measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from sn_mm import distributed
from sn_mm.benchmark.one_rank import SynchronizedSwitchNorm2d, group_of_one

from .gpu import nccl, step, training
from .gpu.processes import Result, run_step, run_tests, step_command
from .gpu.run import OPTIONS, PATHS
from .gpu.step import Failed, NotMeasured
from .resnet import ResNet

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')


# --- processes ------------------------------------------------------------------------------------


def run_script(tmp_path: Path, script: str, limit: float = 60) -> Result:
    """Runs ``script`` as a step; it finds the file of its records in ``OUT``."""
    records = tmp_path / 'records.jsonl'
    script = f'import os, sys\nOUT = open({str(records)!r}, "w", buffering=1)\n{script}'
    return run_step('name', [sys.executable, '-c', script], records, tmp_path / 'log', limit)


def test_a_crash_keeps_the_records_and_says_the_last_line(tmp_path):
    script = """OUT.write('{"a": 1}\\\\n{"cut')\nprint('so far')\nsys.stdout.flush()\nos.abort()"""
    done = run_script(tmp_path, script.replace('\\\\', '\\'))
    assert done.status == 'failed' and done.records == [{'a': 1}]
    assert done.reason == 'killed by SIGABRT: so far'


def test_an_exit_without_an_end_is_a_failure(tmp_path):
    done = run_script(tmp_path, 'sys.exit(0)')
    assert (done.status, done.reason) == ('failed', 'ended without a last record')


def test_a_hanging_step_is_stopped_with_its_children(tmp_path):
    script = """
import subprocess, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
OUT.write('{"child": %d}\\n' % child.pid)
time.sleep(600)
"""
    began = time.monotonic()
    done = run_script(tmp_path, script, limit=3)
    assert time.monotonic() - began < 30
    assert (done.status, done.reason) == ('failed', 'stopped after 3 s')
    child = done.records[0]['child']
    time.sleep(0.5)
    alive = psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE
    assert not alive


@pytest.mark.parametrize(
    ('error', 'end', 'code'),
    [
        (NotMeasured('no such device'), {'end': 'not measured', 'reason': 'no such device'}, False),
        (Failed('2 of 3'), {'end': 'failed', 'reason': '2 of 3'}, True),
        (KeyError('x'), {'end': 'failed', 'reason': "KeyError: 'x'"}, True),
        (None, {'end': 'done'}, False),
    ],
)
def test_how_a_step_ends(error, end, code, tmp_path, monkeypatch):
    def run(device, quick):
        yield {'quick': quick}
        if error is not None:
            raise error

    monkeypatch.setitem(sys.modules, 'checks.gpu.made_up', SimpleNamespace(run=run))
    records = tmp_path / 'records.jsonl'
    monkeypatch.setattr(sys, 'argv', step_command('made_up', records, quick=True)[2:])
    with pytest.raises(SystemExit) as exited:
        step.main()
    assert exited.value.code == code
    assert [json.loads(line) for line in records.read_text().splitlines()] == [{'quick': True}, end]


# --- the tests ------------------------------------------------------------------------------------


def test_the_tests_are_counted_by_their_report(tmp_path):
    (tmp_path / 'test_it.py').write_text("""
import os
import pytest

def test_passes():
    assert os.environ['SN_MM_BACKEND'] == 'aten'

@pytest.mark.skip('no reason')
def test_skipped(): pass

def test_fails():
    assert False
""")
    # Else the names begin where the folders of this checkout and of the test part.
    options = [f'--rootdir={tmp_path}', str(tmp_path / 'test_it.py')]
    done = run_tests('name', options, 'aten', tmp_path / 'log', 60)
    assert (done.name, done.status) == ('name', 'failed')
    assert done.reason == '1 of 3 tests fail, the first: test_it::test_fails'
    (record,) = done.records
    assert record['backend'] == 'aten' and record['not_run'] == {'no reason': 1}
    assert [record[k] for k in ('passed', 'failed', 'skipped')] == [1, 1, 1]


def test_tests_that_do_not_start_say_why(tmp_path):
    done = run_tests('name', ['--no-such-option'], '', tmp_path / 'log', 60)
    assert done.status == 'failed' and done.reason.startswith('exit status 4: ')


@pytest.mark.slow
def test_the_tests_need_torch_and_pytest_only(tmp_path):
    others = ('hypothesis', 'expecttest', 'psutil', 'rich', 'mmengine', 'mmcv', 'mmdet', 'cv2')
    (tmp_path / 'bare.py').write_text(f'import sys\nsys.modules |= dict.fromkeys({others})')
    plugins = ('-p', 'bare', '-p', 'no:timeout', '-p', 'no:hypothesispytest')
    command = [sys.executable, '-m', 'pytest', '--collect-only', '-q', *plugins, *OPTIONS, *PATHS]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [*command, '-p', 'no:cacheprovider'],
        cwd=ROOT, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for module in (*PATHS[:2], 'tests/test_ops/test_triton.py'):
        assert f'{module}::' in done.stdout


# --- the steps ------------------------------------------------------------------------------------


def test_resnet_50_is_the_one_of_the_paper():
    model = ResNet()
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 53
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    features = nn.Sequential(model.stem, model.stages)
    with torch.device('meta'):
        x = torch.empty(1, 3, 224, 224)
    assert features.to('meta')(x).shape == (1, 2048, 7, 7)


def test_a_group_of_one_rank_calls_the_collectives(monkeypatch):
    monkeypatch.setattr(distributed, '_FEW_RANKS', 0)  # as on accelerators
    calls = []
    layer = SynchronizedSwitchNorm2d(3)
    with group_of_one(CPU):
        collective = torch.distributed.all_reduce

        def counted(tensor, *args, **kwargs):
            calls.append((tensor.numel(), tensor.dtype))
            return collective(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.distributed, 'all_reduce', counted)
        x = torch.randn(2, 3, 4, 5, requires_grad=True)
        layer(x).sum().backward()
    assert calls == [(7, torch.float64), (6, torch.float32)]
    assert not torch.distributed.is_initialized()


def test_a_synchronized_layer_that_differs_is_a_failure(monkeypatch):
    monkeypatch.setattr(nccl, 'compare', lambda x: {'output': float('nan'), 'running_mean': 0.0})
    with pytest.raises(Failed, match="float32 contiguous: .* differ: {'output': nan}"):
        list(nccl.run(CPU, True))


@pytest.mark.skipif(
    not hasattr(torch._C._autograd._KinetoEvent, 'start_ns'),
    reason='torch < 2.4 records no times that order allocations',
)
def test_a_norm_that_cannot_train_leaves_the_others_alone():
    class Broken(nn.BatchNorm2d):
        def forward(self, x):
            raise RuntimeError('no kernel\nand more')

    norms = {
        'BatchNorm': nn.BatchNorm2d,
        'Broken': Broken,
        'GroupNorm': lambda c: nn.GroupNorm(1, c),
    }
    records = []
    with pytest.raises(Failed, match='^Broken: RuntimeError: no kernel$'):
        for record in training.compare(norms, CPU, True, lambda model: model, quick_blocks=(1,)):
            records.append(record)
    broken, batch, group = records
    assert broken == {'norm': 'Broken', 'error': 'RuntimeError: no kernel'}
    assert batch['ratio'] == 1 and group['step']['median'] > 0
