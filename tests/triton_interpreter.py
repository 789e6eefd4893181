"""Triton's interpreter, in which the kernels for CUDA run without a GPU."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np


def why_unusable() -> str:
    """Why the installed interpreter cannot run the kernels (the compiler may); '' if it can."""
    try:
        triton = version('triton')
    except PackageNotFoundError:
        return 'Triton is not installed'
    if _two_numbers(triton) < (3, 2):
        return f'the interpreter of Triton {triton} computes something else'
    if _two_numbers(triton) < (3, 6) and _two_numbers(np.__version__) >= (2, 4):
        return f'the interpreter of Triton {triton} fails with NumPy {np.__version__}'
    return ''


def _two_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split('.')[:2]))
