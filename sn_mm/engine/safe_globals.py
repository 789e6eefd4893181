"""The classes that ``torch.load`` may unpickle besides tensors: those in mmengine's checkpoints."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from mmengine.utils import digit_version

# From this version on torch.load takes the names of allowed classes, in mmengine's calls too.
TAKES_NAMES = digit_version(torch.__version__) >= digit_version('2.6.0')
# Forks of mmengine allow names of their own while they load, and torch keeps one object a name.
MMENGINE_ALLOWS = hasattr(checkpoint, 'get_torch_safe_globals')
NUMBERS = 'f4', 'f8', 'i8'  # NumPy's names of the dtypes in mmengine's checkpoints


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
    """All that a checkpoint may name besides what torch allows by itself.

    Returns:
        The object for each name in a pickle. Calling any of them with any arguments, setting the
        state of what they make, or reading its attributes runs no code from the file.
    """
    scalar: Any = np.float64().__reduce__()[0]
    return {
        'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
        'builtins.getattr': _history_buffer_method,
        '__builtin__.getattr': _history_buffer_method,
        'numpy.dtype': _number_dtype,
        'numpy.ndarray': _array_class,
        # numpy 1 and 2 name these two differently, and a checkpoint may come from either.
        'numpy.core.multiarray._reconstruct': _empty_array,
        'numpy._core.multiarray._reconstruct': _empty_array,
        'numpy.core.multiarray.scalar': scalar,
        'numpy._core.multiarray.scalar': scalar,
    }


def _classes_with_state() -> list[tuple[type, str]]:
    """The classes whose instances may be given a state, which torch wants on its list too.

    With names that no pickle can hold: there, a name ends at the end of the line.
    """
    classes: list[type] = [np.ndarray, *(type(np.dtype(number)) for number in NUMBERS)]
    return [(kind, f'state of\n{kind.__name__}') for kind in classes]


def allowed_globals() -> list[Any]:
    """As ``torch.serialization.add_safe_globals`` takes them, from torch 2.6 on."""
    return [*((kind, name) for name, kind in safe_globals().items()), *_classes_with_state()]


def register_safe_globals() -> None:
    """Allows :func:`safe_globals` in this process, so that ``torch.load`` reads them.

    In the process and not in a ``safe_globals`` context around our own loads: the toolboxes' own
    scripts resume and test through mmengine's Runner, which calls ``torch.load`` by itself, and
    while a context is open it is the process's too.

    From torch 2.6 on, ``torch.load`` refuses classes that are not named: without this, mmengine
    0.10 cannot read the log history in its own checkpoints. Earlier versions have no such list:
    with them this does nothing, and :func:`sn_mm.engine.safe_load.safe_load` reads checkpoints.
    """
    if TAKES_NAMES and not MMENGINE_ALLOWS:
        torch.serialization.add_safe_globals(allowed_globals())
