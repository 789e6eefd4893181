"""Records the launches of the Triton backend, and how Triton tells compiled kernels apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sn_mm.ops.triton import kernels
from sn_mm.ops.triton import launch as backend


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


class _Recorder:
    def __init__(self, record: Callable[[Launch], None], run: bool) -> None:
        self._record, self._run = record, run

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(kernels, name)

        class Kernel:
            def __getitem__(this, grid: Any) -> Callable[..., None]:
                def launch(*args: Any, **kwargs: Any) -> None:
                    self._record(Launch(name, kernel, dict(zip(kernel.arg_names, args)) | kwargs))
                    if self._run:
                        with _disable_current_modes():
                            kernel[grid](*args, **kwargs)

                return launch

        return Kernel()


@contextmanager
def recorded_launches(run: bool = True) -> Iterator[list[Launch]]:
    """The launches of the block; without ``run`` only listed, so that meta tensors will do."""
    launches: list[Launch] = []
    backend.kernels = _Recorder(launches.append, run)
    try:
        yield launches
    finally:
        backend.kernels = kernels
