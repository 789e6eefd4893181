"""How launches find their compiled kernels, without a GPU; run by test_triton_variants.py.

python tests/test_ops/triton_variants.py keys | starts TARGET
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

sys.path.insert(0, str(Path(__file__).parents[1]))
from checks.kernels import TARGETS, Driver

from sn_mm.equations import SCOPES
from sn_mm.ops.protocol import Parameters, Running, Settings
from sn_mm.ops.triton import kernels
from sn_mm.ops.triton import launch as backend
from sn_mm.ops.triton import start as starts

SUBSETS = [('in',), ('ln',), ('bn',), ('in', 'ln'), ('in', 'bn'), ('ln', 'bn'), SCOPES]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def tensor(shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> Tensor:
    """A tensor ``offset`` values away from an address that 16 divides."""
    size = torch.Size(shape).numel()
    return torch.randn(size + offset).to(dtype)[offset:].view(shape)


def a_step(shape: tuple[int, ...], scopes: tuple[str, ...] = SCOPES, choose: Any = None) -> None:
    """The passes of a layer, synchronized too; ``choose`` picks what is left open.

    Without it all is float32, contiguous and aligned.
    """
    choose = choose or (lambda options: options[0])
    dtype, of_parameters = choose(DTYPES), choose(DTYPES)

    def tensor_of(dtype: torch.dtype, *shape: int) -> Tensor:
        return tensor(shape, dtype, choose([0, 1, 16]))

    def batch() -> Tensor:
        return memory_format(tensor_of(dtype, *shape))

    def channels_last(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, h, w, c).permute(0, 3, 1, 2)

    memory_format = choose([lambda x: x, channels_last])
    channels, affine = shape[1], choose([True, False])
    logits = [tensor_of(of_parameters, len(scopes)) for _ in range(2)]
    vectors = [tensor_of(of_parameters, channels) if affine else None for _ in range(2)]
    parameters = Parameters(*logits, *vectors)
    running = Running(
        tensor_of(of_parameters, channels),
        tensor_of(choose(DTYPES), channels),
        choose([torch.zeros((), dtype=torch.int64), None]),
        choose([0.1, 1.0]),
    )
    if running.batches is not None:
        running = running._replace(momentum=choose([0.1, 1.0, None]))
    running = choose([running, None])
    settings = Settings(scopes, choose([1e-5, 1.0]), choose([0, 1]))
    training = running is None or choose([True, False])
    x, dy = batch(), batch()
    moments = backend.measure(x, settings, running, training)
    total = choose([5, torch.ones((), dtype=torch.float64)])
    if training and 'bn' in scopes:
        totals = backend.contribute(moments['bn'], 5)
        moments['bn'] = backend.unite(totals, torch.float32, settings, running)
        total = choose([total, totals[0]])
    backend.normalize(x, moments, parameters, settings)
    moments = {k: choose([t, tensor(t.shape, t.dtype, 1)]) for k, t in moments.items()}
    measured = training and 'bn' in scopes
    sums, _ = backend.reduce(dy, x, moments, parameters, settings, measured)
    backend.propagate(dy, x, moments, sums, parameters, settings, total)


def keys() -> dict[str, Any]:
    """Triton's own keys of the launches of random steps, by the kind that we give a launch."""
    found: dict[str, set[str]] = {}
    told: list[str] = []

    def tell(key: str, **others: Any) -> bool:
        told.append(key)
        return True  # do not compile

    def record(name: str, programs: int, tensors: Any, numbers: Any, constants: Any, warps: int):
        kind = str(starts.kind(name, tensors, constants, warps))
        kernel = getattr(kernels, name)
        kernel[programs,](*tensors, *numbers, *constants, num_warps=warps)
        found.setdefault(kind, set()).add(f'{name} {told.pop()}')

    knobs.runtime.jit_cache_hook = tell
    triton.runtime.driver.set_active(Driver(TARGETS['sm_90']))
    backend.start = record
    choose = random.Random(0).choice
    for _ in range(150):
        size = choose([(1, 1), (4, 4), (16, 16), (5, 7)])
        a_step((choose([1, 2]), choose([1, 3, 8, 16]), *size), choose(SUBSETS), choose)
    keys_of_kinds = list(found.values())
    return {
        'kinds': len(keys_of_kinds),
        'keys': len(set().union(*keys_of_kinds)),
        'kinds of several keys': [k for k, several in found.items() if len(several) > 1],
    }


class StartingDriver(Driver):
    """Writes down what it would start."""

    utils = SimpleNamespace(
        load_binary=lambda *arguments: (1, 2, 0, 0, 1024),
        get_device_properties=lambda device: {'max_shared_mem': 2**18},
    )
    started: list[tuple] = []

    @classmethod
    def launcher_cls(cls, source: Any, metadata: Any) -> Any:
        def launch(*arguments: Any) -> None:
            grid, kernel_arguments = arguments[:3], arguments[9:]
            shown = [
                [str(a.dtype), *a.shape] if isinstance(a, Tensor) else a for a in kernel_arguments
            ]
            cls.started.append((metadata.name, metadata.hash, grid, shown))

        return launch


def starts_of(target: str) -> dict[str, Any]:
    """What two equal steps start, and how many launches of the second go Triton's own way."""
    triton.runtime.driver.set_active(StartingDriver(TARGETS[target]))
    own_way: list[str] = []
    for name in kernels.__all__:
        getattr(kernels, name).add_pre_run_hook(lambda *a, name=name, **k: own_way.append(name))

    def started_by(run: Callable[[], Any]) -> list[tuple]:
        own_way.clear()
        StartingDriver.started = []
        run()
        return StartingDriver.started

    first = started_by(lambda: a_step((2, 8, 4, 4)))
    second, second_own_way = started_by(lambda: a_step((2, 8, 4, 4))), own_way[:]
    settings, batch = Settings(SCOPES, 1e-5, 0), tensor((2, 1, 8), torch.float32)
    by_alignment, by_width = [], []
    for offset in (0, 1, 0, 1):
        x = tensor((2, 8, 4, 4), torch.float32, offset)
        (_, variant, *_), _ = started_by(partial(backend.measure, x, settings, None, True))
        by_alignment.append(variant)
    for count in (5, 2**31, 5, 2**31):
        [(_, variant, *_)] = started_by(partial(backend.contribute, batch, count))
        by_width.append(variant)
    return {
        'equal': first == second,
        'started': [name for name, *_ in second],
        'own way': second_own_way,
        'variants by alignment': by_alignment,
        'variants by width': by_width,
    }


if __name__ == '__main__':
    print(json.dumps(keys() if sys.argv[1] == 'keys' else starts_of(sys.argv[2])))
