"""The classes that ``torch.load`` may unpickle besides tensors: those in mmengine's checkpoints."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

# From this version on torch.load takes the names of allowed classes, in mmengine's calls too.
TAKES_NAMES = digit_version(torch.__version__) >= digit_version('2.6.0')


def _history_buffer_method(cls: type, name: str) -> Any:
    """Stands in for ``getattr`` in a pickle: gives a HistoryBuffer's statistics, nothing else."""
    if cls is HistoryBuffer and name in ('mean', 'max', 'min', 'current'):
        return getattr(cls, name)
    raise UnpicklingError(f'a checkpoint may not name the attribute {name!r} of {cls!r}')


def register_safe_globals() -> None:
    """Allows the classes in mmengine's checkpoints, so that ``torch.load`` reads them.

    From torch 2.6 on, ``torch.load`` refuses classes that are not named: without this, mmengine
    0.10 cannot read the log history in its own checkpoints. Earlier versions have no such list:
    with them this does nothing, and ``weights_only=True`` reads no more than weights.
    """
    if not TAKES_NAMES:
        return
    reconstruct: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.float64().__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_buffer_method, 'builtins.getattr'),
            (_history_buffer_method, '__builtin__.getattr'),
            np.ndarray,
            np.dtype,
            type(np.dtype(np.float32)),  # mmseg's best score
            type(np.dtype(np.float64)),
            type(np.dtype(np.int64)),
            # numpy 1 and 2 name these two differently, and a checkpoint may come from either.
            (reconstruct, 'numpy.core.multiarray._reconstruct'),
            (reconstruct, 'numpy._core.multiarray._reconstruct'),
            (scalar, 'numpy.core.multiarray.scalar'),
            (scalar, 'numpy._core.multiarray.scalar'),
        ]
    )
