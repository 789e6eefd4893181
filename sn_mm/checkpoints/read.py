"""Checkpoints read: no code in a file runs, and a file that is none is said to be none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..engine.safe_load import safe_load
from ..errors import InputError, some


def read_checkpoint(path: str, keys: Iterable[str] = ('state_dict',)) -> dict:
    """Reads a local checkpoint, memory-mapped where its format allows.

    Args:
        path: A local file.
        keys: Keys that may hold the weights; see :func:`weights_of`.

    Returns:
        The content of the file.

    Raises:
        InputError: If the file does not exist, is truncated, or is not a checkpoint.
    """
    checkpoint = read_file(path)
    weights = weights_of(checkpoint, keys) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not any(map(torch.is_tensor, weights.values())):
        raise InputError(f'checkpoint {path} is not a checkpoint: it holds no weights')
    unnamed = [key for key in weights if not isinstance(key, str)]
    if unnamed:
        raise InputError(f'checkpoint {path} is not a checkpoint: {unnamed[0]!r} names no weight')
    return checkpoint


def read_file(path: str) -> Any:
    """The content of a file that ``torch.save`` wrote; no code in it runs."""
    file = Path(path).expanduser()
    if not file.is_file():
        others = sorted(other.name for other in file.parent.glob('*.pth'))
        raise InputError(
            f'checkpoint {path} {"is a folder" if file.is_dir() else "does not exist"}; '
            f'checkpoints in {file.parent}: {some(others) or "none"}'
        )
    try:
        return safe_load(file)
    except Exception as error:  # a damaged file makes torch raise errors of many classes
        forbidden = re.search(r"GLOBAL (\S+)|but got <class '(\S+)'>", str(error))
        reason = (
            f'it names {forbidden[1] or forbidden[2]}, and loading it could run any code'
            if forbidden
            else f'{file.stat().st_size} bytes, truncated or of another kind'
        )
        raise InputError(f'checkpoint {path} cannot be loaded: {reason}') from error


def weights_of(checkpoint: dict, keys: Iterable[str] = ('state_dict',)) -> dict:
    """The state dict in a checkpoint: under the first of ``keys`` that it has, else all of it."""
    return next((checkpoint[key] for key in keys if key in checkpoint), checkpoint)
