"""Compiles every Triton kernel for GPUs that need not be there; prints what became of each as JSON.

For sm_90 all kernels, dtypes and formats, for sm_80 a sample of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sn_mm.ops.triton import kernels
from sn_mm.ops.triton import launch as backend

REDUCTIONS = (kernels.moments, kernels.grad_sums)
KERNELS = (*REDUCTIONS, kernels.apply, kernels.grad_input)
MAPS = ('x', 'y', 'dx', 'dy')
LAYOUTS = {'contiguous': (False, 1, 512, 4200), 'channels_last': (True, 2, 256, 4200)}
TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'


def compile_kernel(kernel: Any, dtype: str, layout: str, architecture: int) -> dict[str, Any]:
    reduction = kernel in REDUCTIONS
    tiling = backend._cut(*LAYOUTS[layout], reduction, backend.TILE, backend.PROGRAMS)
    arguments = dict(tiling.arguments)
    if kernel is kernels.pool_chunks:
        arguments = dict.fromkeys(('maps', 'positions', 'chunks', 'chunk'))
        arguments |= {'BLOCK_MAPS': 4, 'BLOCK_CHUNKS': 1024, 'num_warps': 4}
    options = {'num_warps': arguments.pop('num_warps')}
    signature, constants, aligned = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name not in arguments:
            signature[name] = f'*{dtype}' if name in MAPS else '*fp32'
            aligned[i,] = [['tt.divisibility', 16]]
        elif name.isupper():
            signature[name], constants[name] = 'constexpr', arguments[name]
        else:
            signature[name] = 'i32'
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget('cuda', architecture, 32), options=options)

    ptx = compiled.asm['ptx']
    stores = set(re.findall(r'st\.global(\S*)', ptx))
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        Path(file.name).write_bytes(compiled.asm['cubin'])
        command = [TOOLS / 'cuobjdump', '-res-usage', file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        'kernel': kernel.__name__,
        'dtype': dtype,
        'layout': layout,
        'architecture': architecture,
        'registers': int(re.search(r'REG:(\d+)', usage)[1]),
        'spilled': int(re.search(r'LOCAL:(\d+)', usage)[1]),
        'widest_load': max(map(width, re.findall(r'ld\.global(\S*)', ptx))),
        'widest_map_store': 16 if reduction else max(map(width, stores)),
    }


def width(suffix: str) -> int:
    """Bytes of a load or store from its suffix in PTX, as ``.v4.b32``."""
    lanes, bits = re.fullmatch(r'.*?(?:\.v(\d))?\.b(\d+)', suffix).groups()
    return int(lanes or 1) * int(bits) // 8


if __name__ == '__main__':
    cases = [*product(KERNELS, ('fp32', 'fp16', 'bf16'), LAYOUTS, (90,))]
    cases.append((kernels.pool_chunks, 'fp32', 'contiguous', 90))
    cases += product(KERNELS, ('fp16',), ['contiguous'], (80,))
    print(json.dumps([compile_kernel(*case) for case in cases]))
