"""The names in MMEngine's checkpoints that torch does not allow by itself."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer

NUMBERS = 'f4', 'f8', 'i8'  # NumPy's names of the dtypes in MMEngine's checkpoints


def _history_buffer_method(cls: type, name: str) -> Any:
    """Stands in for ``getattr`` in a pickle: gives a HistoryBuffer's statistics, nothing else."""
    if cls is HistoryBuffer and name in ('mean', 'max', 'min', 'current'):
        return getattr(cls, name)
    raise UnpicklingError(f'a checkpoint may not name the attribute {name!r} of {cls!r}')


def _number_dtype(kind: str, align: bool = False, copy: bool = False) -> np.dtype:
    """Stands in for ``numpy.dtype`` in a pickle: NumPy's own float32, float64 or int64.

    Not a copy of it, as a pickle asks for: the state that follows leaves NumPy's own as they are,
    but would turn a copy into one that takes bytes of the file for the addresses of objects.
    """
    if kind in NUMBERS:
        return np.dtype(kind)
    raise UnpicklingError(f'a checkpoint may not name the dtype {kind!r}')


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Stands in for the function with which NumPy's pickles begin an array."""
    return np.empty(0)


def _array_class(*arguments: Any) -> None:
    """Stands in for ``numpy.ndarray``: pickles name it, and only :func:`_empty_array` takes it.

    The class itself would make objects of the bytes that a file gives it.
    """
    raise UnpicklingError('a checkpoint may not call numpy.ndarray')


def safe_globals() -> dict[str, Any]:
    """The object for each name in a pickle.

    Several of these objects are stand-ins for what the name says. Only our own unpickler gets them,
    never torch's list, which holds for everybody's ``torch.load``.

    Returns:
        Objects by their names. Calling any of them with any arguments, setting the state of what
        they make, or reading its attributes runs no code from the file.
    """
    scalar: Any = np.float64().__reduce__()[0]
    return {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': _history_buffer_method,
        'numpy.dtype': _number_dtype,
        'numpy.ndarray': _array_class,
        # numpy 1 and 2 name these two differently, and a checkpoint may come from either.
        'numpy.core.multiarray._reconstruct': _empty_array,
        'numpy._core.multiarray._reconstruct': _empty_array,
        'numpy.core.multiarray.scalar': scalar,
        'numpy._core.multiarray.scalar': scalar,
    }
