"""The steps of tools/check_gpu.py: their processes, the choice of tests, their measurements."""

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

from gpu_steps import nccl, no_hypothesis, training
from gpu_steps.processes import Result, run_step, step_command
from gpu_steps.step import Failed, NotMeasured
from gpu_steps.tests import Selection, missing_packages
from sn_mm import distributed
from sn_mm.benchmark.one_rank import SynchronisedSwitchNorm2d, group_of_one
from sn_mm.benchmark.resnet import ResNet

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
    assert (done.status, done.reason) == ('failed', 'exit status 0')


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
    from gpu_steps import step

    def run(device, quick):
        yield {'quick': quick}
        if error is not None:
            raise error

    monkeypatch.setitem(sys.modules, 'gpu_steps.made_up', SimpleNamespace(run=run))
    records = tmp_path / 'records.jsonl'
    monkeypatch.setattr(sys, 'argv', step_command('made_up', records, quick=True)[2:])
    with pytest.raises(SystemExit) as exited:
        step.main()
    assert exited.value.code == code
    assert [json.loads(line) for line in records.read_text().splitlines()] == [{'quick': True}, end]


# --- the choice of tests --------------------------------------------------------------------------


def item(module=None, **parameters):
    made = SimpleNamespace(module=module or SimpleNamespace())
    if parameters:
        made.callspec = SimpleNamespace(params=parameters)
    return made


def test_tests_of_the_device_are_kept():
    kernels = SimpleNamespace(DEVICE=CPU)
    with_kernels, without = Selection('cuda', kernels=True), Selection('cuda', kernels=False)
    assert with_kernels._keeps(item(device='cuda')) and without._keeps(item(device='cuda'))
    assert not with_kernels._keeps(item(device='cpu')) and not with_kernels._keeps(item(size=2))
    assert with_kernels._keeps(item(kernels)) and not without._keeps(item(kernels))
    assert not with_kernels._keeps(item(kernels, device='cpu'))


def test_packages_that_a_module_misses(tmp_path):
    module = tmp_path / 'test_it.py'
    lines = 'import os.path', 'from no_such.part import x', 'import helper', 'import reference'
    module.write_text('\n'.join([*lines, "t = importorskip('optional')", 'import optional']))
    (tmp_path / 'helper.py').write_text('')
    assert missing_packages(module) == ['no_such']


def test_without_hypothesis_only_its_tests_are_skipped(tmp_path):
    (tmp_path / 'test_it.py').write_text("""
import sys
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow])
@given(shape=st.tuples(st.integers(1, 2)).map(list) | st.none(), data=st.data())
@pytest.mark.parametrize('size', [1, 2])
def test_named(shape, data, size, tmp_path):
    raise AssertionError

@example(3)
@given(st.integers())
def test_positional(number):
    raise AssertionError

def test_other():
    pass
""")
    script = """if True:
        import sys
        import pytest
        from gpu_steps import no_hypothesis
        no_hypothesis.find_spec = lambda name: None
        no_hypothesis.stand_in_for_hypothesis()
        sys.exit(pytest.main(['-ra', '-p', 'no:cacheprovider', '-p', 'no:hypothesispytest', '.']))
    """
    env = {**os.environ, 'PYTHONPATH': str(ROOT / 'tools')}
    command = [sys.executable, '-c', script]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert '1 passed, 3 skipped' in done.stdout and no_hypothesis.REASON in done.stdout


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
    layer = SynchronisedSwitchNorm2d(3)
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


def test_a_synchronised_layer_that_differs_is_a_failure(monkeypatch):
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
