"""Starts kernels without Triton's work at each launch.

``kernel[grid](...)`` finds out at each launch which of a kernel's compiled variants the arguments
need, on the host and in Python. Here that is done at the first launch of a kind, and later ones of
this kind start the variant that it gave.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel

from . import kernels

_variants: dict[Hashable, CompiledKernel] = {}
# Before Triton 3.3 a compiled kernel takes other arguments than its function does.
_TAKES_ALL_ARGUMENTS = hasattr(kernels.moments, 'device_caches')


def start(
    name: str,
    programs: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[float],
    constants: Sequence[int],
    warps: int,
) -> None:
    """Starts a kernel on the current device, which is that of its tensors.

    Args:
        name: Of one of :mod:`sn_mm.ops.triton.kernels`, whose arguments are ``tensors``,
            ``numbers`` and ``constants``, in this order.
        programs: How many.
        tensors: The first one is not None.
        numbers: Triton compiles nothing for their values, but for integers of more than 32 bits.
        constants: For each of which a variant is compiled.
        warps: Of a program.
    """
    key = kind(name, tensors, constants, warps)
    narrow = not numbers or max(numbers) < 2**31
    variant = _variants.get(key)
    if variant is not None and narrow:
        variant[programs, 1, 1](*tensors, *numbers, *constants)
        return
    kernel = getattr(kernels, name)
    variant = kernel[programs,](*tensors, *numbers, *constants, num_warps=warps)
    # In the interpreter it is None. For AMD's GPUs the size of a tensor makes a variant, too.
    if isinstance(variant, CompiledKernel) and narrow and _TAKES_ALL_ARGUMENTS:
        if variant.metadata.target.backend == 'cuda':
            _variants[key] = variant


def kind(name: str, tensors: Sequence[Any], constants: Sequence[int], warps: int) -> Hashable:
    """What tells variants apart: no two of a kind need different ones."""
    of_tensors = [None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors]
    return name, tensors[0].device, warps, *constants, *of_tensors
