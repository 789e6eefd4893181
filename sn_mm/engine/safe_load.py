"""Reads checkpoints without running code from them, on every torch."""

from __future__ import annotations

import codecs
import collections
import os
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import _weights_only_unpickler

from .safe_globals import NUMBERS, safe_globals


def safe_load(file: Path, map_location: Any = 'cpu', mmap: bool = True) -> Any:
    """Loads a file of ``torch.save`` by an unpickler that takes known classes and functions only.

    These are torch's own, those on torch's list for this process (``add_safe_globals``), and those
    of :func:`~sn_mm.engine.safe_globals.safe_globals`. Nothing is added to torch's list.

    Args:
        file: A local file.
        map_location: As ``torch.load`` takes it.
        mmap: Map the file into memory where its format allows. The file must then stay as it is.

    Raises:
        UnpicklingError: The file names something else, and loading it could run any code.
        Exception: The file is damaged; torch raises errors of many classes.
    """
    with file.open('rb') as opened:
        zipped = opened.read(4) == b'PK\x03\x04'  # torch's own test
    if zipped and 'constants.pkl' in torch._C.PyTorchFileReader(str(file)).get_all_records():
        raise pickle.UnpicklingError('a TorchScript archive, which is code, not a checkpoint')
    # With this variable torch.load takes no other unpickler than its own.
    forced = os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '').lower() in _TRUE
    return torch.load(
        str(file),  # torch 2.1 takes a memory-mapped file by its name alone
        map_location,
        pickle_module=None if forced else _RESTRICTED,
        weights_only=forced,
        mmap=mmap and zipped,
    )


_TRUE = '1', 'y', 'yes', 'true'


def _allowed() -> dict[str, Any]:
    """The object for each name: torch's, else that on the process's list, else our own."""
    of_torch = _weights_only_unpickler._get_allowed_globals()
    of_process = getattr(_weights_only_unpickler, '_get_user_allowed_globals', dict)
    return {
        'builtins.bytearray': bytearray,
        'builtins.complex': complex,
        'builtins.set': set,
        'collections.Counter': collections.Counter,
        'torch.device': torch.device,
        '_codecs.encode': codecs.encode,  # for bytes
        **safe_globals(),
        **of_process(),
        # Without the old classes of sparse tensors, whose indices torch checks afterwards.
        **{name: kind for name, kind in of_torch.items() if '.sparse.' not in name},
    }


# The opcodes that torch's own unpickler takes: those that torch.save writes, in protocol 2.
_OPCODES = (
    'APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD '
    'EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK '
    'NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINSTRING STOP TUPLE '
    'TUPLE1 TUPLE2 TUPLE3'
)


# The unpickler in Python has its opcodes as methods, which no stub describes.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Takes :func:`_allowed` names, calls nothing else, and sets the state of their instances."""

    dispatch = {
        code: _PythonUnpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _OPCODES.split())
    }

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self._allowed = _allowed()
        self._callable = {id(kind) for kind in self._allowed.values()}
        stateful = np.ndarray, *(type(np.dtype(number)) for number in NUMBERS)
        self._stateful = self._callable | set(map(id, stateful))

    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get(  # protocol 2 has Python 2's names
            (module, name), (IMPORT_MAPPING.get(module, module), name)
        )
        try:
            return self._allowed[f'{module}.{name}']
        except KeyError:
            raise pickle.UnpicklingError(f'not allowed: GLOBAL {module}.{name}') from None

    def load_reduce(self) -> None:
        self._check(self.stack[-2], self._callable, 'call')
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check(self.stack[-2], self._callable, 'make')
        super().load_newobj()

    def load_build(self) -> None:
        self._check(type(self.stack[-2]), self._stateful, 'set the state of')
        super().load_build()

    def _check(self, kind: Any, allowed: set[int], verb: str) -> None:
        if id(kind) not in allowed:
            raise pickle.UnpicklingError(f'a checkpoint may not {verb} {kind!r}')

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


_RESTRICTED = SimpleNamespace(
    __name__='restricted',
    Unpickler=_Unpickler,
    load=lambda file, **options: _Unpickler(file, **options).load(),
)
