"""tools/train.py, tools/test.py and their launchers, run as users run them, on tiny data sets."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
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

for package in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)

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
    (folder / 'sitecustomize.py').write_text(AT_EXIT)
    return folder


@pytest.fixture(scope='module')
def segmentation(folder) -> str:
    """The log of an uninterrupted run on two processes, in work_dirs/seg."""
    return succeed(folder, TOOLS / 'dist_train.sh', 'seg.py', 2, PYTHONPATH=str(folder))


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(folder, segmentation):
    assert 'with gloo' in segmentation and 'mIoU' in segmentation
    assert segmentation.count('gloo threads at exit: 0') == 2
    assert re.search('Importance of SN at the start: [0-9]+ layers: in 0.33, ln 0.33', segmentation)
    work_dir = folder / 'killed'
    launcher = TOOLS / 'dist_train.sh'
    with start(folder, launcher, 'seg.py', 2, '--work-dir', work_dir) as process:
        end = time.monotonic() + LIMIT
        while not (work_dir / 'last_checkpoint').exists():
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.01)
        kill_tree(process)
        process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL and not (work_dir / 'iter_24.pth').exists()

    log = succeed(folder, launcher, work_dir / 'seg.py', 2, '--work-dir', work_dir, '--resume')
    assert re.search(r'resumed epoch: 0, iter: (4|8|12|16|20)\b', log)
    one, other = load(folder / 'work_dirs/seg/iter_24.pth'), load(work_dir / 'iter_24.pth')
    assert any(key.endswith('mean_weight') for key in one['state_dict'])
    assert any('momentum_buffer' in state for state in one['optimizer']['state'].values())
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(one[part], other[part])


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
def test_a_checkpoint_that_does_not_fit_ends_two_processes_with_one_line(folder, segmentation):
    work_dir = folder / 'full'
    shutil.copytree(folder / 'work_dirs/seg', work_dir)
    last = work_dir / 'iter_24.pth'
    (work_dir / 'last_checkpoint').write_text(str(last))
    limit = last.stat().st_size // 2048  # half of it, in KiB, is the most that a file may have
    resumed = (TOOLS / 'dist_train.sh', 'seg.py', 2, '--work-dir', work_dir, '--resume')
    limited = ('bash', '-c', 'ulimit -f "$0"; exec "$@"', limit, *resumed)
    code, _, error = run(folder, *limited, '--cfg-options', 'train_cfg.max_iters=28')
    assert code != 0
    (line,) = [line for line in error.splitlines() if 'could not be written' in line]
    assert (
        f'sn-mm train: error: {work_dir}/iter_28.pth could not be written: File too large' in line
    )
    assert 'Traceback' not in error, error[-4000:]
    assert (work_dir / 'last_checkpoint').read_text() == str(last)
    assert not list(work_dir.glob('iter_28*'))
    assert last.read_bytes() == (folder / 'work_dirs/seg/iter_24.pth').read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
def test_two_runs_on_one_machine_do_not_meet(folder):
    """Each takes a free port. The one given by PORT is taken: whoever asks for it is told."""
    options = ('2', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        launcher = TOOLS / 'dist_train.sh'
        runs = [
            start(folder, launcher, 'seg.py', *options, f'work_dir={folder}/beside{i}', **variables)
            for i, variables in enumerate([{}, {}, {'PORT': port}])
        ]
        said = [process.communicate(timeout=LIMIT) for process in runs]
    assert [process.returncode for process in runs] == [0, 0, 2], said
    assert 'the port is in use by another run, set PORT' in said[2][1]
    assert all((folder / f'beside{i}/iter_2.pth').exists() for i in range(2))


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


def training_that_ends(folder: Path, end: int) -> list[object]:
    """A command that trains on two ranks until rank 1 gets this signal."""
    (folder / 'end_of_a_rank.py').write_text(END_OF_A_RANK)
    config = folder / f'ends{end}.py'
    config.write_text(
        "_base_ = './seg.py'\ncustom_imports = dict(imports=['sn_mm', 'end_of_a_rank'])\n"
        f"custom_hooks = [dict(type='EndOfARank', signal={end})]\n"
        'env_cfg = dict(dist_cfg=dict(timeout=10))\n'
    )
    return [TOOLS / 'dist_train.sh', config, 2, '--work-dir', folder / f'ends{end}']


def pids_of_ranks(out: str) -> list[int]:
    processes = [int(pid) for pid in re.findall(r'rank \d is process (\d+)', out)]
    assert len(processes) == 2
    return processes


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize('end', [signal.SIGKILL, signal.SIGSTOP], ids=['dies', 'hangs'])
def test_a_rank_that_dies_or_hangs_ends_the_others_within_the_timeout(folder, end):
    began = time.monotonic()
    code, out, error = run(folder, *training_that_ends(folder, end), PYTHONPATH=str(folder))
    assert code != 0 and time.monotonic() - began < 150
    assert not any(map(psutil.pid_exists, pids_of_ranks(out)))
    if end == signal.SIGSTOP:  # one that dies also ends the others by the launcher's hand
        assert re.search(
            r'backbone\.\S+ \(num_features=\d+\) waited forward for the ranks \[0, 1\] on rank 0, '
            r'in vain: .*[Tt]imed out', error
        ), error[-3000:]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
def test_ctrl_c_ends_the_launcher_and_every_rank(folder):
    with start(folder, *training_that_ends(folder, 0), PYTHONPATH=str(folder)) as process:
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
@pytest.mark.timeout(3 * LIMIT)
def test_a_detector_trains_tests_and_goes_on_in_the_script_of_mmdet(folder):
    log = succeed(folder, TOOLS / 'train.py', 'det.py', '--auto-scale-lr')
    assert 'LR is set based on batch size of 16 and the current batch size is 2' in log
    work_dir = folder / 'work_dirs/det'
    options = ('--out', 'found.pkl', '--show-dir', folder / 'drawn', '--work-dir', 'tested-det')
    out = succeed(folder, TOOLS / 'test.py', 'det.py', work_dir / 'epoch_1.pth', *options)
    results = [re.findall(r'(coco/\w+): (\S+)', text) for text in (log, out)]
    assert results[0] == results[1] and len(results[0]) == 12
    predictions = pickle.loads((folder / 'found.pkl').read_bytes())
    assert len(predictions) == 2 and 'counts' in predictions[0]['pred_instances']['masks'][0]
    assert len(list((folder / 'drawn').rglob('*.png'))) == 2

    theirs = Path(find_spec('mmdet').origin).parent / '.mim/tools/train.py'
    options = ('--work-dir', 'theirs', '--cfg-options', 'train_cfg.max_epochs=2')
    resume = ('--resume', work_dir / 'epoch_1.pth')
    log = succeed(folder, theirs, work_dir / 'det.py', *resume, *options)
    assert 'resumed epoch: 1, iter: 4' in log and (folder / 'theirs/epoch_2.pth').exists()


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
def test_mixed_precision_trains_in_bfloat16_on_a_cpu(folder, dtype):
    work_dir = folder / f'amp-{dtype}'
    options = ('--work-dir', work_dir, '--cfg-options', 'train_cfg.max_iters=4')
    given = ('optim_wrapper.dtype=bfloat16',) if dtype else ()
    log = succeed(folder, TOOLS / 'train.py', 'seg.py', '--amp', *options, *given)
    assert log.count('No GPU: mixed precision in bfloat16') == (dtype is None)
    state = load(work_dir / 'iter_4.pth')['state_dict']
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


REFUSED = {
    'no such config': ('train', ['sg.py'], 'sg.py does not exist; nearest: seg.py'),
    'no toolbox': ('train', ['mmnone::a/b.py'], "'mmnone' is not installed"),
    'option': ('train', ['seg.py', '--cfg-options', 'model'], 'KEY=VALUE'),
    'amp in half precision': (
        'train',
        ['seg.py', '--amp', '--cfg-options', 'optim_wrapper.dtype=float16'],
        'optim_wrapper.dtype: float16 needs a GPU, and none is visible; on a CPU',
    ),
    'amp with operators of mmcv': (
        'train',
        ['det.py', '--amp'],
        'does not train in bfloat16 here; train it without mixed precision',
    ),
    'amp on another wrapper': (
        'train',
        ['det.py', '--amp', '--cfg-options', 'optim_wrapper.type=Mine'],
        'the config has Mine',
    ),
    'auto-scale-lr': ('train', ['seg.py', '--auto-scale-lr'], 'auto_scale_lr=dict('),
    'nothing to resume': ('train', ['seg.py', '--resume', '--work-dir', 'new'], 'in new: no'),
    'resume from nowhere': ('train', ['seg.py', '--resume', 'no.pth'], 'no.pth does not exist'),
    'resume from weights': ('train', ['seg.py', '--resume', 'bn.pth'], 'holds no meta'),
    'load from text': ('train', ['seg.py', '--cfg-options', 'load_from=det.py'], 'cannot be'),
    'data root': (
        'train',
        ['det.py', '--cfg-options', 'train_dataloader.dataset.data_root=none/'],
        "train_dataloader.dataset.ann_file: 'none/annotations/instances_train2017.json' does not",
    ),
    'norm': ('train', ['det.py', '--norm', 'LN'], "SyncBN, GN, IN, got 'LN'"),
    'groups': ('train', ['det.py', '--norm', 'GN'], 'GN does not fit the model: num_channels (8)'),
    'norm argument': ('train', ['det.py', '--norm', 'SN', 'foo=1'], 'got foo'),
    'nothing to switch': ('test', ['seg.py', 'no.pth', '--norm', 'SN'], 'nothing to switch'),
    'launcher': ('train', ['seg.py', '--launcher', 'pytorch'], 'finds no RANK'),
    'normalizer': (
        'train',
        ['seg.py', '--cfg-options', 'model.backbone.norm_cfg.normalizers=[foo]'],
        "got ('foo',)",
    ),
    'no files with the suffix': (
        'train',
        ['seg.py', '--cfg-options', 'train_dataloader.dataset.img_suffix=.none'],
        'train_dataloader.dataset has no samples',
    ),
    'checkpoint': ('test', ['seg.py', 'no.pth'], 'checkpoints in .: bn.pth, cut.pth'),
    'cut off': ('test', ['seg.py', 'cut.pth'], 'cut.pth cannot be loaded'),
    'BatchNorm weights': ('test', ['seg.py', 'bn.pth'], "it holds BatchNorm's weights, without"),
    'out': ('test', ['det.py', 'bn.pth', '--out', 'folder'], 'must end in .pkl'),
    'tta': ('test', ['seg.py', 'bn.pth', '--tta', '--cfg-options', 'tta_model=None'], 'needs tta_'),
}

# Runs each command as its script would, all in one process: what they import is imported once.
DRIVER = """
import contextlib, io, json, runpy, sys
tools, commands = sys.argv[1], json.loads(sys.argv[2])
ends = {}
for name, (script, argv, _) in commands.items():
    sys.argv = [f'{tools}/{script}.py', *argv]
    with contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as stop:
            ends[name] = (stop.code, error.getvalue())
print(json.dumps(ends))
"""


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
def test_bad_input_ends_in_one_line_and_leaves_nothing(folder, segmentation):
    state = load(folder / 'work_dirs/seg/iter_24.pth')['state_dict']
    batch_norm = {k: v for k, v in state.items() if not k.endswith(('mean_weight', 'var_weight'))}
    torch.save({'state_dict': batch_norm}, folder / 'bn.pth')
    (folder / 'cut.pth').write_bytes((folder / 'bn.pth').read_bytes()[:-1000])
    before = set(folder.rglob('*'))

    driver = (sys.executable, '-c', DRIVER, TOOLS, json.dumps(REFUSED))
    code, out, error = run(folder, *driver, PYTHONPATH=str(ROOT))
    assert code == 0, error[-3000:]
    ends = json.loads(out.splitlines()[-1])
    for name, (script, _, said) in REFUSED.items():
        code, error = ends[name]
        assert code == 2, name
        *noise, line = error.splitlines()
        assert line.startswith(f'sn-mm {script}: error: ') and said in line, (name, line)
        assert not any('error:' in other or 'Traceback' in other for other in noise), name
    # Only what was refused by the model or by its data has a work dir, with its log.
    new = {path.relative_to(folder).parts[:2] for path in set(folder.rglob('*')) - before}
    assert {parts[0] for parts in new} <= {'work_dirs', '__pycache__'}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT)
def test_two_processes_refuse_bad_input_with_one_line(folder):
    code, _, error = run(folder, TOOLS / 'dist_train.sh', 'sg.py', 2)
    assert code == 2 and 'Traceback' not in error
    lines = [line for line in error.splitlines() if 'error:' in line]
    assert len(lines) == 1
    assert lines[0].startswith('sn-mm train: error: config sg.py does not exist; nearest: seg.py')


@pytest.mark.slow
def test_a_port_that_is_none_is_one_line(folder):
    code, _, error = run(folder, TOOLS / 'dist_train.sh', 'seg.py', 2, PORT='70000')
    assert code == 2 and 'Traceback' not in error
    assert error.splitlines()[-1].startswith('sn-mm train: error: The port number')


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
