"""Compiles every Triton kernel for GPUs that this machine need not have; prints results as JSON.

For sm_90 all kernels, dtypes, formats and scopes, for sm_80 and sm_70 float16 maps only.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton_launches import Launch, recorded_launches

from sn_mm.ops.protocol import Parameters, Running, Settings
from sn_mm.ops.triton import kernels
from sn_mm.ops.triton import launch as backend

MAPS = ('x', 'y', 'dx', 'dy')
SHAPES = [(2, 256, 60, 72), (2, 256, 600, 720)]  # one chunk or few, and many chunks
SUBSETS = [('in',), ('ln',), ('bn',), ('in', 'ln'), ('in', 'bn'), ('ln', 'bn')]
FORMATS = [torch.contiguous_format, torch.channels_last]
TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'


def launches_of_a_step(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float16,
    memory_format: torch.memory_format = torch.contiguous_format,
    scopes: tuple[str, ...] = ('in', 'ln', 'bn'),
    affine: bool = True,
) -> list[Launch]:
    """Everything that a synchronised layer launches forward and backward, and in evaluation."""
    x = torch.empty(shape, dtype=dtype, device='meta').contiguous(memory_format=memory_format)
    three, channels = x.new_empty(3, dtype=torch.float32), x.new_empty(shape[1]).float()
    logits = three[: len(scopes)]
    parameters = Parameters(logits, logits, *(channels if affine else None for _ in range(2)))
    running = Running(channels, channels, x.new_empty((), dtype=torch.int64), 0.1)
    settings = Settings(scopes, 1e-5, 0)
    with recorded_launches(run=False) as launches:
        for statistics in (
            None, running, running._replace(momentum=None), running._replace(batches=None)
        ):  # fmt: skip
            moments = backend.measure(x, settings, statistics, training=True)
            totals = backend.contribute(moments.get('bn', channels[None, None]), 5)
            backend.unite(totals, torch.float32, settings, statistics)
        backend.measure(x, settings, running, training=False)
        backend.normalize(x, moments, parameters, settings)
        for measured, total in ((True, 5), (True, totals[0]), (False, 1)):
            sums, _ = backend.reduce(x, x, moments, parameters, settings, measured)
            backend.propagate(x, x, moments, sums, parameters, settings, total)
    return launches


class Driver:
    """Stands in for CUDA's, so that Triton compiles all that a launch needs, and launches nothing.

    A device is named by its architecture: Triton keeps its compiled kernels for each device.
    """

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget('cuda', self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(launch: Launch, architecture: int) -> dict[str, Any]:
    """To machine code; meta tensors are aligned to 16 bytes, as those of torch on CUDA are."""
    triton.runtime.driver.set_active(Driver(architecture))
    compiled = launch.kernel.warmup(grid=(1,), **launch.arguments)
    maps = (launch.arguments[name] for name in MAPS if name in launch.arguments)

    ptx = compiled.asm['ptx']
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        Path(file.name).write_bytes(compiled.asm['cubin'])
        command = [TOOLS / 'cuobjdump', '-res-usage', file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        'kernel': launch.name,
        'architecture': architecture,
        'map': next((str(x.dtype) for x in maps), None),
        'channels_last': launch.arguments.get('CHANNELS_LAST'),
        'block': [v for k, v in launch.arguments.items() if k.startswith('BLOCK')],
        'registers': int(re.search(r'REG:(\d+)', usage)[1]),
        'spilled': int(re.search(r'LOCAL:(\d+)', usage)[1]),
        'shared': int(re.search(r'SHARED:(\d+)', usage)[1]),
        'widest_load': widest(r'ld\.global(\S*)', ptx),
        'widest_store': widest(r'st\.global(\S*)', ptx),
    }


def widest(instruction: str, ptx: str) -> int:
    """Bytes of the widest load or store, from suffixes as ``.v4.b32``."""
    sizes = [0]
    for suffix in re.findall(instruction, ptx):
        lanes, bits = re.fullmatch(r'.*?(?:\.v(\d))?\.[bf](\d+)', suffix).groups()
        sizes.append(int(lanes or 1) * int(bits) // 8)
    return max(sizes)


def cases() -> Iterator[tuple[Launch, int]]:
    for architecture, dtypes in (
        (90, (torch.float32, torch.float16, torch.bfloat16)),
        (80, (torch.float16,)),
        (70, (torch.float16,)),
    ):
        launches = []
        for step in product(SHAPES, dtypes, FORMATS):
            launches += launches_of_a_step(*step)
        if architecture == 90:
            for scopes in SUBSETS:
                launches += launches_of_a_step(SHAPES[0], scopes=scopes, affine=False)
        variants = {launch.variant(): launch for launch in launches}
        for launch in variants.values():
            yield launch, architecture


def variants_compiled() -> int:
    """How many variants Triton itself tells apart."""
    functions = [getattr(kernels, name) for name in kernels.__all__]
    if hasattr(functions[0], 'cache'):  # Triton before 3.3
        return sum(len(cache) for kernel in functions for cache in kernel.cache.values())
    return sum(len(c[0]) for kernel in functions for c in kernel.device_caches.values())


if __name__ == '__main__':
    compiled = [compile_launch(*case) for case in cases()]
    if variants_compiled() != len(compiled):
        raise AssertionError(f'{variants_compiled()} variants, {len(compiled)} of Launch.variant')
    print(json.dumps(compiled))
