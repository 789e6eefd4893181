"""The machine of a measurement: its description, and its allocator kept out of the picture."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sn_mm.errors import InputError

# Read when a process starts. glibc gives freed memory back to the kernel, and the page faults of
# the next step can cost more than the layer.
_ENVIRONMENT = {
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    'MALLOC_MMAP_THRESHOLD_': str(2**32),
    'MALLOC_TRIM_THRESHOLD_': str(2**33),
    'MALLOC_TOP_PAD_': str(2**28),
    'KINETO_LOG_LEVEL': '99',  # no lines of the profiler between those of a command
}


def hold_freed_memory() -> None:
    """Starts this process over, once, so that its allocator keeps freed memory."""
    if any(os.environ.get(name) != value for name, value in _ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ENVIRONMENT})


def find_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        InputError: It is not 'cpu' or 'cuda' with an optional number, or is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'--device {name}: {str(error).splitlines()[0]}') from None
    if device.type not in ('cpu', 'cuda'):
        raise InputError(f'--device must be cpu or cuda, got {name}')
    return device


def describe(device: torch.device) -> dict[str, object]:
    """Processor, cores, threads, versions and date, ready for JSON."""
    cuda = device.type == 'cuda'
    return {
        'device': device_name(device),
        'cpu': _cpu_name(),
        'cores': len(os.sched_getaffinity(0)),
        'threads': torch.get_num_threads(),
        'system': platform.platform(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cuda': torch.version.cuda if cuda else None,
        'triton': _version('triton') if cuda else None,
        'sn_mm': _version('sn_mm'),
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d'),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'


def file_name(device: torch.device) -> str:
    """The device as a part of a file's name, as ``nvidia-h200``."""
    return re.sub(r'[^a-z0-9]+', '-', device_name(device).lower()).strip('-')


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    names = re.findall(r'^model name\s*: (.*)$', info.read_text(), re.M) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
