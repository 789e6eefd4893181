"""What a measurement runs on: the device, and an allocator that is kept out of the picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from ..errors import InputError

# Read when a process starts. glibc gives freed memory back to the kernel, and the page faults of
# the next step can cost more than the layer.
_ENVIRONMENT = {
    'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    'MALLOC_MMAP_THRESHOLD_': str(2**32),
    'MALLOC_TRIM_THRESHOLD_': str(2**33),
    'MALLOC_TOP_PAD_': str(2**28),
    'KINETO_LOG_LEVEL': '99',  # no lines of the profiler between those of a command
}


def hold_freed_memory(program: Sequence[str]) -> None:
    """Starts this process over, once, so that its allocator keeps freed memory.

    Args:
        program: The words that start ``sn-mm``.
    """
    if any(os.environ.get(name) != value for name, value in _ENVIRONMENT.items()):
        command = [*program, *sys.argv[0].split()[1:], *sys.argv[1:]]
        os.execve(command[0], command, {**os.environ, **_ENVIRONMENT})


def find_device(name: str | None) -> torch.device:
    """The device that ``--device`` names. Default: a GPU, if there is one.

    Raises:
        InputError: It is not 'cpu' or 'cuda' with an optional number, or is not there.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'--device {name}: {str(error).splitlines()[0]}') from None
    if device.type not in ('cpu', 'cuda'):
        raise InputError(f'--device must be cpu or cuda, got {name}')
    return device
