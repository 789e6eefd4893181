"""Checkpoints read without running what is in them, on every torch."""

from __future__ import annotations

import codecs
import collections
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import _weights_only_unpickler

from .safe_globals import (
    MMENGINE_ALLOWS,
    NUMBERS,
    TAKES_NAMES,
    allowed_globals,
    register_safe_globals,
    safe_globals,
)


def safe_load(file: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, memory-mapped where the format allows.

    From torch 2.6 on ``torch.load(weights_only=True)`` with :func:`allowed_globals`; before,
    whose ``weights_only`` takes no names, a restricted unpickler with the same names and opcodes.

    Raises:
        UnpicklingError: The file names something else, and loading it could run any code.
        Exception: The file is damaged; torch raises errors of many classes.
    """
    with file.open('rb') as opened:
        mmap = opened.read(4) == b'PK\x03\x04'  # torch's own test, where it takes a file for a zip
    if TAKES_NAMES:
        register_safe_globals()
        # Leaving it takes its names off the process's list, so only those that are not on it.
        with torch.serialization.safe_globals(allowed_globals() if MMENGINE_ALLOWS else []):
            return torch.load(file, 'cpu', weights_only=True, mmap=mmap)
    if mmap and 'constants.pkl' in torch._C.PyTorchFileReader(str(file)).get_all_records():
        raise pickle.UnpicklingError('a TorchScript archive, which is code, not a checkpoint')
    # torch 2.1 takes a memory-mapped file by its name alone.
    return torch.load(str(file), 'cpu', pickle_module=_RESTRICTED, mmap=mmap)


def _allowed() -> dict[str, Any]:
    """The object for each name that torch 2.6 takes by itself or :func:`safe_globals` add."""
    return {
        **_weights_only_unpickler._get_allowed_globals(),
        '_codecs.encode': codecs.encode,  # for bytes
        '__builtin__.bytearray': bytearray,
        '__builtin__.complex': complex,
        '__builtin__.set': set,
        'collections.Counter': collections.Counter,
        'torch.device': torch.device,
        **safe_globals(),
    }


# As torch's own unpickler: what torch.save writes, in protocol 2.
_OPCODES = (
    'APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD '
    'EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK '
    'NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINSTRING STOP TUPLE '
    'TUPLE1 TUPLE2 TUPLE3'
)


# The one in Python, whose opcodes are methods: no stub describes them.
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
