"""Starts runs of several processes, also on a machine without a GPU, where mmengine does not."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed

from ..errors import InputError

_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


@contextmanager
def launched(cfg: Config) -> Iterator[None]:
    """Runs its body as one process of ``cfg.launcher``, and ends the process group after it.

    With a GPU the start is left to mmengine. Without one, mmengine's launchers fail (they select
    a CUDA device), but it leaves alone a group that exists: a gloo group is started here, and the
    model is wrapped as mmengine would wrap it, with no device ids.

    A rank that waits for one that is gone gives up after ``env_cfg.dist_cfg.timeout`` seconds
    (torch's default, 30 minutes, if the config does not say).

    The group ends before Python does: a thread of gloo that lets go of its last tensor while the
    interpreter shuts down aborts the process. These threads end with the last reference to their
    group, so the body is to leave no model behind. After an error in the body the group is left
    alone: its end would wait for collectives that the other ranks may never join.

    Args:
        cfg: The config, changed in place: ``model_wrapper_cfg``, on a machine without accelerator.

    Raises:
        InputError: If the launcher's environment variables are missing or out of range, if the port
            is in use, or if there are more processes than GPUs.
    """
    _prepare(cfg)
    yield
    if not distributed.is_initialized():
        return
    for worker in multiprocessing.active_children():
        if worker.daemon:  # of a data loader, which would wait 5 s for it when it is collected
            worker.terminate()
    gc.collect()
    distributed.destroy_process_group()


def _prepare(cfg: Config) -> None:
    if cfg.launcher == 'none':
        return
    needed = _VARIABLES[cfg.launcher]
    missing = [name for name in needed if name not in os.environ]
    if missing:
        raise InputError(
            f'--launcher {cfg.launcher} finds no {", ".join(missing)} in the environment: start '
            'with --processes N (pytorch), tools/slurm_*.sh (slurm) or mpirun (mpi)'
        )
    names = needed[:3]
    rank, size, local_rank = (_whole_number(name) for name in names)
    if not rank < size:
        raise InputError(f'{names[0]} must be below {names[1]}={size}, got {rank}')
    if 'MASTER_PORT' in os.environ and not 0 < _whole_number('MASTER_PORT') < 2**16:
        raise InputError(f'MASTER_PORT must be from 1 to 65535, got {os.environ["MASTER_PORT"]}')
    if get_device() == 'cuda' and local_rank >= torch.cuda.device_count():
        raise InputError(
            f'process {local_rank} of this machine has no GPU of its own: '
            f'{torch.cuda.device_count()} visible (CUDA_VISIBLE_DEVICES=-1 runs on the CPU)'
        )
    if get_device() != 'cpu':
        return
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    if cfg.launcher != 'pytorch':
        os.environ.setdefault('MASTER_PORT', '29500')
        os.environ.setdefault('MASTER_ADDR', _first_host())
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    given: Any = {'timeout': timedelta(seconds=timeout)} if timeout else {}
    try:
        distributed.init_process_group('gloo', **given)
    except RuntimeError as error:
        if 'EADDRINUSE' not in str(error):
            raise
        raise InputError(
            f'the port {os.environ["MASTER_PORT"]} is in use by another run: set PORT or '
            'MASTER_PORT to another'
        ) from error
    cfg.model_wrapper_cfg = cfg.get('model_wrapper_cfg') or {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
    }
    cfg.model_wrapper_cfg.setdefault('device_ids', None)
    if rank == 0:
        print(f"No GPU: {size} processes on the CPU, with gloo in place of the config's backend.")


def _whole_number(name: str) -> int:
    """An environment variable of the launcher."""
    given = os.environ[name]
    if not given.isdecimal():
        raise InputError(f'the environment variable {name} must be a whole number, got {given!r}')
    return int(given)


def _first_host() -> str:
    """The first machine of a slurm job; this machine under MPI."""
    nodes = os.environ.get('SLURM_NODELIST')
    if nodes is None:
        return '127.0.0.1'
    return subprocess.check_output(['scontrol', 'show', 'hostnames', nodes], text=True).split()[0]


def build_runner(cfg: Config) -> Runner:
    """Builds the runner that the config asks for: mmengine's, or its own ``runner_type``."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
