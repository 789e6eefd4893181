"""Records the launches of the Triton backend, and how Triton tells compiled kernels apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sn_mm.ops.triton import kernels
from sn_mm.ops.triton import launch as backend
from sn_mm.ops.triton.start import start


class Launch(NamedTuple):
    """A launch of a kernel; options of the compiler, as ``num_warps``, are arguments too."""

    name: str
    kernel: Any
    arguments: dict[str, Any]

    def variant(self) -> tuple:
        """The arguments for which a kernel is compiled anew."""
        kept = [(k, v) for k, v in self.arguments.items() if k not in self.kernel.arg_names]
        return self.name, *kept, *map(self._kind, self.kernel.arg_names)

    def _kind(self, name: str) -> Any:
        value = self.arguments[name]
        if name.isupper() or value is None:
            return value
        if isinstance(value, float):
            return 'fp32'
        free = name in do_not_specialize(self.kernel)
        if isinstance(value, Tensor):
            return value.dtype, free or value.data_ptr() % 16 == 0
        return 'i32' if value < 2**31 else 'i64', None if free else (value == 1, value % 16 == 0)


def do_not_specialize(kernel: Any) -> list[str]:
    return getattr(kernel, 'kwargs', {}).get('do_not_specialize') or kernel.do_not_specialize or []


@contextmanager
def recorded_launches(run: bool = True) -> Iterator[list[Launch]]:
    """The launches of the block; without ``run`` only listed, so that meta tensors will do."""
    launches: list[Launch] = []

    def record(name: str, programs: int, *arguments: Any) -> None:
        *three, warps = arguments
        kernel = getattr(kernels, name)
        by_name = dict(zip(kernel.arg_names, chain(*three)))
        launches.append(Launch(name, kernel, {**by_name, 'num_warps': warps}))
        if run:
            with _disable_current_modes():
                start(name, programs, *arguments)

    backend.start = record
    try:
        yield launches
    finally:
        backend.start = start
