"""Process groups on machines without an accelerator."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmengine.config import Config
from torch import distributed

from sn_mm.cli import launch
from sn_mm.cli.launch import launched
from sn_mm.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


@pytest.fixture
def cpu(monkeypatch, port):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    monkeypatch.setenv('MASTER_PORT', port)
    yield monkeypatch
    if distributed.is_initialized():
        distributed.destroy_process_group()


def set_variables(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_without_a_launcher_nothing_is_started():
    cfg = Config({'launcher': 'none'})
    with launched(cfg):
        assert not distributed.is_initialized() and 'model_wrapper_cfg' not in cfg


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_a_launcher_that_did_not_launch_is_refused(cpu, launcher):
    with pytest.raises(InputError, match=f'--launcher {launcher} finds no .*RANK|PROCID'):
        launched(Config({'launcher': launcher})).__enter__()


def test_more_processes_than_gpus_are_refused(cpu):
    cpu.setattr(launch, 'get_device', lambda: 'cuda')
    cpu.setattr(launch.torch.cuda, 'device_count', lambda: 1)
    set_variables(
        cpu, RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=29500
    )
    with pytest.raises(InputError, match='process 1 of .* no GPU of its own: 1 visible'):
        launched(Config({'launcher': 'pytorch'})).__enter__()


def test_a_slurm_job_on_cpus_gets_a_gloo_group_and_a_wrapper_without_devices(cpu, tmp_path, capsys):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\necho 127.0.0.1\n')
    scontrol.chmod(0o755)
    cpu.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    set_variables(cpu, SLURM_PROCID=0, SLURM_NTASKS=1, SLURM_LOCALID=0, SLURM_NODELIST='a[1-2]')
    cfg = Config({'launcher': 'slurm', 'find_unused_parameters': True})
    with launched(cfg):
        assert distributed.get_backend() == 'gloo' and 'gloo' in capsys.readouterr().out
    assert not distributed.is_initialized()
    wrapper = cfg.model_wrapper_cfg
    assert wrapper.device_ids is None and wrapper.find_unused_parameters
    assert wrapper.type == 'MMDistributedDataParallel' and wrapper.broadcast_buffers is False


def test_a_wrapper_of_the_config_is_kept(cpu):
    set_variables(cpu, RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1')
    cfg = Config({'launcher': 'pytorch', 'model_wrapper_cfg': {'static_graph': True}})
    with launched(cfg):
        pass
    assert cfg.model_wrapper_cfg == {'static_graph': True, 'device_ids': None}


def test_workers_of_data_loaders_end_with_the_run(cpu):
    set_variables(cpu, RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1')
    with launched(Config({'launcher': 'pytorch'})):
        worker = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
        worker.start()
    worker.join(30)
    assert worker.exitcode == -signal.SIGTERM


@pytest.mark.parametrize(
    'wait',
    [
        'layer(torch.ones(1, 3, 2, 2))',
        pytest.param('distributed.barrier()', marks=pytest.mark.slow),
    ],
)
def test_a_rank_does_not_wait_for_ever_for_one_that_hangs(port, wait):
    program = (
        'import time; from mmengine.config import Config; from sn_mm.cli.launch import *\n'
        'from sn_mm import SwitchNorm2d\nfrom sn_mm.distributed import resolve_group\n'
        "env = dict(dist_cfg=dict(backend='nccl', timeout=2))\n"
        "with launched(Config(dict(launcher='pytorch', env_cfg=env))):\n"
        '    layer = SwitchNorm2d(3, sync=True); resolve_group(True)\n'
        f'    time.sleep(60) if distributed.get_rank() else {wait}\n'
    )
    variables = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    variables.update(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='-1', OMP_NUM_THREADS='1')
    ranks = [
        subprocess.Popen(
            [sys.executable, '-c', program],
            env={**os.environ, **variables, 'RANK': rank, 'LOCAL_RANK': rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in '01'
    ]
    try:
        began = time.monotonic()
        _, error = ranks[0].communicate(timeout=50)
        assert ranks[0].returncode != 0 and 'imed out' in error
        assert time.monotonic() - began < 50
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
