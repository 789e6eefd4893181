"""Compiles the Triton kernels for GPUs that this machine need not have; prints results as JSON.

    python -m checks.kernels [--every]

To machine code. For one GPU of each family one dtype and format, for sm_90 both formats; with
``--every``, for every GPU in ``TARGETS`` all dtypes, formats and subsets of scopes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from test_ops.triton_launches import Launch, recorded_launches
from triton.backends.compiler import GPUTarget

from sn_mm.ops.protocol import Parameters, Running, Settings
from sn_mm.ops.triton import kernels
from sn_mm.ops.triton import launch as backend

TARGETS = {
    **{f'sm_{number}': GPUTarget('cuda', number, 32) for number in (70, 80, 90, 100, 120)},
    'gfx90a': GPUTarget('hip', 'gfx90a', 64),
    'gfx942': GPUTarget('hip', 'gfx942', 64),
    'gfx1100': GPUTarget('hip', 'gfx1100', 32),
}
FAMILIES = ('sm_90', 'sm_100', 'gfx942', 'gfx1100')
SHAPES = [(2, 256, 60, 72), (2, 256, 600, 720)]  # one chunk or few, and many chunks
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = [torch.contiguous_format, torch.channels_last]
SUBSETS = [('in',), ('ln',), ('bn',), ('in', 'ln'), ('in', 'bn'), ('ln', 'bn')]
INPUTS = ('x', 'y', 'dx', 'dy')
TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
# What AMD's instructions call the bytes of a load or store.
AMD_BYTES = {
    'ubyte': 1, 'u8': 1, 'byte': 1, 'b8': 1, 'ushort': 2, 'u16': 2, 'short': 2, 'b16': 2,
    'dword': 4, 'b32': 4, 'dwordx2': 8, 'b64': 8, 'dwordx3': 12, 'b96': 12, 'dwordx4': 16,
    'b128': 16,
}  # fmt: skip


def launches_of_a_step(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float16,
    memory_format: torch.memory_format = torch.contiguous_format,
    scopes: tuple[str, ...] = ('in', 'ln', 'bn'),
    affine: bool = True,
) -> list[Launch]:
    """Everything that a synchronized layer launches forward and backward, and in evaluation."""
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
    """Stands in for a GPU's, so that Triton compiles all that a launch needs, and launches nothing.

    The device is named by its architecture: Triton keeps its compiled kernels for each device.
    """

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target.arch)

    def get_current_stream(self, device: str) -> int:
        return 0


def compile_launch(launch: Launch, target: str) -> dict[str, Any]:
    """To machine code; meta tensors are aligned to 16 bytes, as those of torch on a GPU are."""
    triton.runtime.driver.set_active(Driver(TARGETS[target]))
    compiled = launch.kernel.warmup(grid=(1,), **launch.arguments)
    read = (launch.arguments[name] for name in INPUTS if name in launch.arguments)
    measured = _of_nvidia if TARGETS[target].backend == 'cuda' else _of_amd
    return {
        'kernel': launch.name,
        'target': target,
        'dtype': next((str(x.dtype).removeprefix('torch.') for x in read), None),
        'channels_last': launch.arguments.get('CHANNELS_LAST'),
        **measured(compiled),
    }


def _of_nvidia(compiled: Any) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        Path(file.name).write_bytes(compiled.asm['cubin'])
        command = [TOOLS / 'cuobjdump', '-res-usage', file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def widest(instruction: str) -> int:
        """From suffixes as ``.v4.b32``."""
        found = re.findall(
            rf'{instruction}\.global\S*?(?:\.v(\d))?\.[bf](\d+)', compiled.asm['ptx']
        )
        return max((int(lanes or 1) * int(bits) // 8 for lanes, bits in found), default=0)

    return {
        'registers': int(re.search(r'REG:(\d+)', usage)[1]),
        'spilled': int(re.search(r'LOCAL:(\d+)', usage)[1]),
        'shared': int(re.search(r'SHARED:(\d+)', usage)[1]),
        'load': widest('ld'),
        'store': widest('st'),
    }


def _of_amd(compiled: Any) -> dict[str, int]:
    code = compiled.asm['amdgcn']

    def number(name: str) -> int:
        return int(re.search(rf'\.{name}:\s*(\d+)', code)[1])

    def widest(direction: str) -> int:
        """Of loads and stores in global memory."""
        found = re.findall(rf'(?:global|buffer|flat)_{direction}_(\w+)', code)
        return max((AMD_BYTES[kind] for kind in found), default=0)

    return {
        'registers': number('vgpr_count'),
        'spilled': number('vgpr_spill_count') + number('sgpr_spill_count'),
        'shared': number('group_segment_fixed_size'),
        'load': widest('load'),
        'store': widest('store'),
    }


def cases(every: bool) -> Iterator[tuple[Launch, str]]:
    """Each variant of a kernel for each target."""
    for target in TARGETS if every else FAMILIES:
        if every:
            steps = [*product(SHAPES, DTYPES, FORMATS)]
            steps += [(SHAPES[0], torch.float16, FORMATS[0], k, False) for k in SUBSETS]
        else:
            formats = FORMATS if target == 'sm_90' else FORMATS[1:]
            steps = [(SHAPES[1], torch.float16, memory_format) for memory_format in formats]
        launches = [launch for step in steps for launch in launches_of_a_step(*step)]
        for launch in {launch.variant(): launch for launch in launches}.values():
            yield launch, target


def variants_compiled() -> int:
    """How many variants Triton itself tells apart."""
    functions = [getattr(kernels, name) for name in kernels.__all__]
    if hasattr(functions[0], 'cache'):  # Triton before 3.3
        return sum(len(cache) for kernel in functions for cache in kernel.cache.values())
    return sum(len(c[0]) for kernel in functions for c in kernel.device_caches.values())


if __name__ == '__main__':
    compiled = [compile_launch(*case) for case in cases('--every' in sys.argv)]
    if variants_compiled() != len(compiled):
        raise AssertionError(f'{variants_compiled()} variants, {len(compiled)} of Launch.variant')
    print(json.dumps(compiled))
