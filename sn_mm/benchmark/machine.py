"""The machine on which something was measured."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..version import __version__


def describe(device: torch.device) -> dict[str, object]:
    """Processor, cores, threads, versions and date, ready for JSON.

    torch.utils.collect_env has other fields, and takes seconds: it starts pip, gcc and lscpu.
    """
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
        'sn_mm': __version__,
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
