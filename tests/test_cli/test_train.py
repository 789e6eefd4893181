"""tools/train.py, tools/test.py and their launchers, run as users run them, on tiny data sets."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from small_runs import (
    DETECTION,
    LIMIT,
    ROOT,
    SEGMENTATION,
    TOOLS,
    assert_same,
    kill_tree,
    load,
    run,
    start,
    succeed,
    write_split,
)

from sn_mm.cli import train
from sn_mm_cli.main import main

for package in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)

# A tiny model without a toolbox, for tests of processes.
TOY = """
custom_imports = dict(imports=['sn_mm'])
model = dict(type='toy_training.Model')
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=dict(type='toy_training.Noise'),
    sampler=dict(type='InfiniteSampler'), collate_fn=dict(type='default_collate'))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
env_cfg = dict(dist_cfg=dict(timeout=5))
default_scope = 'mmengine'
"""

# The last words of every rank: a thread of gloo that outlives the run may abort it.
AT_EXIT = """
import atexit
import os
from pathlib import Path

def say():
    threads = [file.read_text() for file in Path('/proc/self/task').glob('*/comm')]
    count = sum('gloo' in name for name in threads)
    os.write(1, f'gloo threads at exit: {count}\\n'.encode())  # whole: both ranks speak at once

if 'RANK' in os.environ:
    atexit.register(say)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('tools')
    write_split(folder / 'data', 'train', 8)
    write_split(folder / 'data', 'val', 2)
    (folder / 'det.py').write_text(DETECTION)
    (folder / 'seg.py').write_text(SEGMENTATION)
    (folder / 'toy.py').write_text(TOY)
    (folder / 'sitecustomize.py').write_text(AT_EXIT)
    return folder


@pytest.fixture(scope='module')
def segmentation(folder) -> str:
    """The log of an uninterrupted run on two processes, in work_dirs/seg.

    Beside it another one trains in killed, until all its processes are killed after a checkpoint.
    """
    work_dir = folder / 'killed'
    command = (TOOLS / 'dist_train.sh', 'seg.py', 2)
    with start(folder, *command, '--work-dir', work_dir) as killed:
        with start(folder, *command, PYTHONPATH=str(folder)) as undisturbed:
            end = time.monotonic() + LIMIT
            while not (work_dir / 'last_checkpoint').exists():
                assert time.monotonic() < end and killed.poll() is None, killed.communicate()
                time.sleep(0.01)
            kill_tree(killed)
            killed.communicate(timeout=LIMIT)
            out, error = undisturbed.communicate(timeout=LIMIT)
    assert killed.returncode == -signal.SIGKILL and not (work_dir / 'iter_24.pth').exists()
    assert undisturbed.returncode == 0, (out + error)[-3000:]
    return out + error


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(folder, segmentation):
    """Neither meets the other, which trains beside it: each takes a free port."""
    assert 'with gloo' in segmentation and 'mIoU' in segmentation
    assert segmentation.count('gloo threads at exit: 0') == 2
    assert re.search('Importance of SN at the start: [0-9]+ layers: in 0.33, ln 0.33', segmentation)
    work_dir = folder / 'killed'
    command = (TOOLS / 'dist_train.sh', work_dir / 'seg.py', 2)
    log = succeed(folder, *command, '--work-dir', work_dir, '--resume')
    assert re.search(r'resumed epoch: 0, iter: (4|8|12|16|20)\b', log)
    one, other = load(folder / 'work_dirs/seg/iter_24.pth'), load(work_dir / 'iter_24.pth')
    assert any(key.endswith('mean_weight') for key in one['state_dict'])
    assert any('momentum_buffer' in state for state in one['optimizer']['state'].values())
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(one[part], other[part])


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
def test_a_checkpoint_that_cannot_be_written_ends_two_processes_with_one_line(folder):
    work_dir = folder / 'blocked'
    (work_dir / 'iter_4.pth').mkdir(parents=True)
    command = (TOOLS / 'dist_train.sh', 'toy.py', 2, '--work-dir', work_dir)
    code, _, error = run(folder, *command, PYTHONPATH=str(ROOT / 'tests'))
    assert code == 2, error[-3000:]
    (line,) = [line for line in error.splitlines() if 'could not be written' in line]
    assert f'sn-mm train: error: {work_dir}/iter_4.pth could not be written: Is a directory' in line
    assert 'Traceback' not in error, error[-4000:]
    last = work_dir / 'iter_2.pth'
    assert (work_dir / 'last_checkpoint').read_text() == str(last)
    assert 'norm.mean_weight' in load(last)['state_dict']
    assert not list(work_dir.glob('*.tmp'))


# In the second iteration rank 1 gets a signal, or waits where it is 0.
END_OF_A_RANK = """
import os
import time
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class EndOfARank(Hook):
    def __init__(self, signal):
        self.signal = signal

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if batch_idx == 0:
            os.write(1, f'rank {get_rank()} is process {os.getpid()}\\n'.encode())
        if batch_idx == 1 and get_rank() == 1:
            os.kill(os.getpid(), self.signal)
            time.sleep(600)
"""


def training_that_ends(folder: Path, end: int) -> tuple[list[object], dict[str, str]]:
    """A command that trains on two ranks until rank 1 gets this signal, and its environment."""
    (folder / 'end_of_a_rank.py').write_text(END_OF_A_RANK)
    config = folder / f'ends{end}.py'
    config.write_text(
        "_base_ = './toy.py'\ncustom_imports = dict(imports=['sn_mm', 'end_of_a_rank'])\n"
        f"custom_hooks = [dict(type='EndOfARank', signal={end})]\n"
        'default_hooks = dict(checkpoint=dict(interval=6))\n'
    )
    path = os.pathsep.join([str(folder), str(ROOT / 'tests')])
    command = [TOOLS / 'dist_train.sh', config, 2, '--work-dir', folder / f'ends{end}']
    return command, {'PYTHONPATH': path}


def pids_of_ranks(out: str) -> list[int]:
    processes = [int(pid) for pid in re.findall(r'rank \d is process (\d+)', out)]
    assert len(processes) == 2
    return processes


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize('end', [signal.SIGKILL, 0], ids=['dies', 'hangs'])
def test_a_rank_that_dies_or_hangs_ends_the_others_within_the_timeout(folder, end):
    began = time.monotonic()
    command, variables = training_that_ends(folder, end)
    code, out, error = run(folder, *command, **variables)
    assert code != 0 and time.monotonic() - began < 150
    assert not any(map(psutil.pid_exists, pids_of_ranks(out)))
    if end == 0:  # one that dies also ends the others by the launcher's hand
        assert re.search(
            r'norm \(num_features=4\) waited forward for the ranks \[0, 1\] on rank 0, '
            r'in vain: .*[Tt]imed out', error
        ), error[-3000:]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
def test_ctrl_c_ends_the_launcher_and_every_rank(folder):
    command, variables = training_that_ends(folder, 0)
    with start(folder, *command, **variables) as process:
        said = ''
        while said.count(' is process ') < 2:
            said += process.stdout.readline()
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGINT
    assert 'SignalException' not in error, error[-3000:]
    assert not any(map(psutil.pid_exists, pids_of_ranks(said)))


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
def test_two_processes_test_a_segmentor_and_write_label_maps_and_pictures(folder, segmentation):
    checkpoint = folder / 'work_dirs/seg/iter_24.pth'
    options = ('--out', 'maps', '--show-dir', 'pictures', '--work-dir', 'tested')
    command = (TOOLS / 'dist_test.sh', 'seg.py', checkpoint, 2)
    log = succeed(folder, *command, *options, PYTHONPATH=str(folder))
    assert log.count('gloo threads at exit: 0') == 2
    found = [re.findall(r'mIoU: ([\d.]+)', text)[-1] for text in (segmentation, log)]
    assert found[0] == found[1]
    metrics = json.loads((folder / 'tested/metrics.json').read_text())
    assert metrics['mIoU'] == pytest.approx(float(found[1]), abs=0.005)
    assert sorted(p.name for p in (folder / 'maps').iterdir()) == [
        f'{number}_leftImg8bit.png' for number in range(2)
    ]
    pictures = list((folder / 'pictures').rglob('*.png'))
    assert len(pictures) == 1  # of two: mmengine draws what rank 0 tests


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
def test_a_detector_trains_and_gets_the_same_figures_from_test(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    main(['train', 'det.py', '--auto-scale-lr'])
    log = capsys.readouterr().out
    assert 'LR is set based on batch size of 16 and the current batch size is 2' in log
    drawn = ('--show-dir', str(folder / 'drawn'), '--work-dir', 'tested-det')
    main(['test', 'det.py', 'work_dirs/det/epoch_1.pth', '--out', 'found.pkl', *drawn])
    results = [re.findall(r'(coco/\w+): (\S+)', text) for text in (log, capsys.readouterr().out)]
    assert results[0] == results[1] and len(results[0]) == 12
    predictions = pickle.loads((folder / 'found.pkl').read_bytes())
    assert len(predictions) == 2 and 'counts' in predictions[0]['pred_instances']['masks'][0]
    assert len(list((folder / 'drawn').rglob('*.png'))) == 2


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
@pytest.mark.skipif(get_device() != 'cpu', reason='with a GPU, mixed precision is that of MMEngine')
def test_mixed_precision_trains_in_bfloat16_on_a_cpu(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = ('--work-dir', 'amp', '--cfg-options', 'train_cfg.max_iters=4')
    main(['train', 'seg.py', '--amp', *options])
    assert capsys.readouterr().out.count('No GPU: mixed precision in bfloat16') == 1
    state = load(folder / 'amp/iter_4.pth')['state_dict']
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize('given', [{}, {'dtype': 'bfloat16'}], ids=['chosen', 'given'])
def test_bfloat16_is_said_where_the_config_does_not_give_it(given, monkeypatch, capsys):
    monkeypatch.setattr(train, 'get_device', lambda: 'cpu')
    cfg = Config({'optim_wrapper': {'type': 'AmpOptimWrapper', 'loss_scale': 'dynamic', **given}})
    train.train_amp_on_cpu(cfg)
    assert cfg.optim_wrapper == {'type': 'BFloat16OptimWrapper'}
    assert ('No GPU: mixed precision in bfloat16' in capsys.readouterr().out) == (not given)


@pytest.mark.slow
def test_a_port_that_is_taken_or_none_is_one_line(folder):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        for port, said in (
            (str(taken.getsockname()[1]), 'the port is in use by another run, set PORT'),
            ('70000', 'The port number'),
        ):
            code, _, error = run(folder, TOOLS / 'dist_train.sh', 'seg.py', 2, PORT=port)
            assert code == 2 and 'Traceback' not in error
            assert error.splitlines()[-1].startswith(f'sn-mm train: error: {said}'), error


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_a_launcher_without_its_arguments_says_which_it_takes(folder, name):
    for words in ([], ['seg.py'], ['seg.py', 'many']):
        code, _, error = run(folder, TOOLS / f'{name}.sh', *words)
        assert code == 2 and 'usage:' in error and 'CONFIG' in error


@pytest.mark.parametrize(
    ('name', 'given', 'passed'),
    [
        ('slurm_train', ['seg.py'], 'train.py seg.py --launcher slurm'),
        ('slurm_test', ['seg.py', 'a.pth'], 'test.py seg.py a.pth --launcher slurm'),
    ],
)
def test_a_slurm_job_gets_its_resources_and_options(tmp_path, name, given, passed):
    (tmp_path / 'srun').write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    resources = {'GPUS': '4', 'GPUS_PER_NODE': '2', 'SRUN_ARGS': '--exclusive --quiet'}
    path = f'{tmp_path}:{os.environ["PATH"]}'
    words = ['part', 'job', *given, '--cfg-options', 'a=b c']
    code, out, _ = run(tmp_path, TOOLS / f'{name}.sh', *words, PATH=path, **resources)
    assert code == 0 and out.startswith('-p part --job-name=job --gres=gpu:2 --ntasks=4 ')
    assert '--ntasks-per-node=2' in out and '--exclusive --quiet' in out
    assert out.endswith(f'{TOOLS}/{passed} --cfg-options a=b c\n')
