"""The Triton backend: on CUDA where there is one, in Triton's interpreter on the CPU elsewhere.

The interpreter takes a few milliseconds for each tile: the maps here are small, and small tiles
make programs share them as they share large ones. It shortens float32 to bfloat16 without rounding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import switch_norm as reference
from torch import Tensor

from sn_mm import SwitchNorm, ops

triton = pytest.importorskip('triton')
import triton.language as tl  # noqa: E402

from sn_mm.ops.triton import launch as backend  # noqa: E402
from sn_mm.ops.triton.kernels import _place  # noqa: E402

DEVICE = torch.device('cpu' if backend.INTERPRETED else 'cuda')
ROOT = Path(__file__).parents[2]
FORMATS = ['contiguous', 'channels_last']
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.fixture
def chunked(monkeypatch):
    """Small tiles, so that small maps are cut into chunks."""
    monkeypatch.setattr(backend, 'TILE', 16)
    monkeypatch.setattr(backend, 'PROGRAMS', 64)


def random_map(shape: tuple[int, ...], dtype: torch.dtype, memory_format: str) -> Tensor:
    x = (torch.randn(shape, device=DEVICE) * 2 + 1).to(dtype)
    if memory_format == 'contiguous':
        return x
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()])


def rows(x: Tensor) -> Tensor:
    return x.double().reshape(*x.shape[:2], -1)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    eps = EPS[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=8 * eps, atol=16 * eps * scale)


def check_sweeps(x: Tensor, dy: Tensor) -> None:
    """All four against their definitions in float64."""
    arrays = mean, a, b, c = torch.randn(4, *x.shape[:2], device=DEVICE)
    found_mean, found_var, spare = backend.moments(x, torch.float32)
    assert spare is None and found_mean.dtype == found_var.dtype == torch.float32
    close(found_mean, rows(x).mean(2), torch.float32)
    close(found_var, rows(x).var(2, correction=0), torch.float32, 4)

    mean64, a64, b64, c64 = arrays.double()[..., None]
    y = backend.apply(x, a, b)
    assert y.dtype == x.dtype and y.stride() == x.stride()
    close(y.reshape(rows(x).shape), a64 * rows(x) + b64, x.dtype)

    sum_dy, sum_dy_xc = backend.grad_sums(dy, x, mean)
    close(sum_dy, rows(dy).sum(2), torch.float32, 32)
    close(sum_dy_xc, (rows(dy) * (rows(x) - mean64)).sum(2), torch.float32, 64)

    dx = backend.grad_input(dy, x, mean, a, b, c)
    assert dx.dtype == x.dtype and dx.stride() == x.stride()
    expected = a64 * rows(dy) + b64 * (rows(x) - mean64) + c64
    close(dx.reshape(rows(x).shape), expected, x.dtype, 2)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, size) for size in (3, 6, 7, 7))),
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from(FORMATS),
    tile=st.sampled_from([16, 64, 4096]),
    programs=st.sampled_from([1, 8, 32]),
)
def test_sweeps_of_maps_of_any_size(shape, dtype, memory_format, tile, programs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, 'TILE', tile)
        patch.setattr(backend, 'PROGRAMS', programs)
        x = random_map(shape, dtype, memory_format)
        check_sweeps(x, random_map(shape, dtype, memory_format))


@pytest.mark.parametrize('shape', [(5, 3), (1, 1), (2, 3, 7), (2, 3, 2, 3, 4), (1, 2, 1, 40)])
def test_sweeps_of_any_number_of_axes(shape):
    check_sweeps(*(random_map(shape, torch.float32, 'contiguous') for _ in range(2)))


def test_sweeps_of_channels_last_volumes():
    check_sweeps(*(random_map((2, 3, 2, 3, 4), torch.float32, 'channels_last') for _ in range(2)))


@pytest.mark.parametrize('memory_format', FORMATS)
def test_chunks_of_a_map_are_pooled(chunked, memory_format):
    x, dy = (random_map((1, 2, 9, 15), torch.float32, memory_format) for _ in range(2))
    assert backend._tiling(x, reduction=True).chunks > 2
    check_sweeps(x, dy)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_maps_that_are_not_dense_are_made_so(memory_format):
    wide = random_map((2, 6, 5, 8), torch.float16, memory_format)
    for x in (wide[:, ::2], wide[..., 1:5], wide.transpose(2, 3), wide[:1].expand(3, -1, -1, -1)):
        x = ops.dense(x)
        check_sweeps(x, ops.dense(torch.randn_like(x), like=x))


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('memory_format', FORMATS)
def test_equal_values_have_variance_zero(chunked, memory_format, dtype):
    x = torch.full_like(random_map((1, 2, 5, 25), dtype, memory_format), 1e4)
    mean, var, _ = backend.moments(x, torch.float32)
    assert (mean == x[0, 0, 0, 0].float()).all() and (var == 0).all()


@pytest.mark.parametrize('tile', [16, 4096])
@pytest.mark.parametrize('memory_format', FORMATS)
def test_moments_far_from_zero_are_as_good_as_batch_norm_has_them(monkeypatch, memory_format, tile):
    monkeypatch.setattr(backend, 'TILE', tile)
    x = random_map((1, 6, 9, 19), torch.float32, memory_format) + 1e4
    mean, var, _ = backend.moments(x, torch.float32)
    batch = torch.nn.BatchNorm2d(6, momentum=1, device=DEVICE)
    batch(x)
    batch_var = batch.running_var.double() * (9 * 19 - 1) / (9 * 19)
    expected_mean, expected_var = rows(x).mean(2), rows(x).var(2, correction=0)
    error, batch_error = ((v - expected_var).abs().max() for v in (var, batch_var))
    assert error <= max(batch_error, 4 * torch.finfo(torch.float32).eps)
    error, batch_error = ((m - expected_mean).abs().max() for m in (mean, batch.running_mean))
    assert error <= max(batch_error, 1e4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_moments_where_the_first_value_is_nothing_like_the_others(chunked, memory_format):
    x = random_map((1, 2, 9, 15), torch.float32, memory_format) + 1e4
    x[:, :, 0, 0] = 0
    mean, var, _ = backend.moments(x, torch.float32)
    torch.testing.assert_close(mean.double(), rows(x).mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), rows(x).var(2, correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_statistics_of_an_infinite_value_are_not_finite(memory_format):
    x = random_map((1, 2, 5, 5), torch.float32, memory_format)
    x[0, 1, 2, 2] = torch.inf
    mean, var, _ = backend.moments(x, torch.float32)
    assert mean.isfinite().tolist() == var.isfinite().tolist() == [[True, False]]


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_layer_on_triton(monkeypatch, memory_format, training):
    taken = []

    def backend_for(x: Tensor):
        taken.append(x.shape)
        return backend

    monkeypatch.setattr(ops, 'backend_for', backend_for)
    layer = SwitchNorm(3).to(DEVICE).train(training)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    parameters = {k: p.detach().double().requires_grad_() for k, p in layer.named_parameters()}
    running = {'running_mean': layer.running_mean.clone(), 'running_var': layer.running_var.clone()}
    x = random_map((2, 3, 5, 6), torch.float32, memory_format).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    dy = random_map((2, 3, 5, 6), torch.float32, 'contiguous')

    y = layer(x)
    y.backward(dy)
    expected = reference([x64], training=training, **parameters, **running)
    expected.outputs[0].backward(dy.double())
    assert taken
    tolerance = {'rtol': 1e-4, 'atol': 1e-5, 'check_dtype': False}
    torch.testing.assert_close(y, expected.outputs[0], **tolerance)
    torch.testing.assert_close(x.grad, x64.grad, **tolerance)
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, parameters[name].grad, **tolerance)
    torch.testing.assert_close(layer.running_var, expected.running_var, **tolerance)


# --- sizes that no test can hold -----------------------------------------------------------------


@triton.jit
def last_offsets(
    found, program, groups, maps, positions, blocks, chunks, steps,
    LAST: tl.constexpr, UNIT: tl.constexpr, BLOCK_MAPS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    _, chunk_place, there, origin, _, inside, stride, first, end, positions = _place(
        program, groups, maps, positions, blocks, chunks, steps, LAST, UNIT, BLOCK_MAPS,
        BLOCK_POSITIONS,
    )  # fmt: skip
    begin = first + (end - 1 - first) // BLOCK_POSITIONS * BLOCK_POSITIONS
    valid = (begin + tl.arange(0, BLOCK_POSITIONS) < positions)[None, :] & there[:, None]
    offsets = tl.where(valid, origin + begin * stride + inside, -1)
    tl.store(found, tl.max(tl.max(offsets, 1), 0))
    tl.store(found + 1, tl.max(tl.where(there, chunk_place, -1), 0))


@pytest.mark.parametrize(
    ('last', 'groups', 'maps', 'positions'),
    [
        (False, 1, 2**20, 2**13),  # many rows
        (False, 1, 2, 2**32 + 5),  # long rows
        (True, 2**12, 2**8, 2**13),  # many images
        (True, 2, 2**3, 2**33),  # large images
        (True, 2, 2**28, 2**5),  # more channels than fit in a tile
    ],
)
@pytest.mark.parametrize('reduction', [True, False])
def test_offsets_beyond_32_bits(last, groups, maps, positions, reduction):
    """The last value of the last program's tile, as the kernels find it, ends the tensor."""
    tiling = backend._cut(last, groups, maps, positions, reduction, 4096, 1024)
    programs = tiling.grid[0]
    assert programs < 2**31
    arguments = {k: v for k, v in tiling.arguments.items() if k != 'num_warps'}
    found = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    last_offsets[1,](found, programs - 1, **arguments)
    values = groups * maps * positions
    assert found.tolist() == [values - 1, tiling.chunks * groups * maps - 1]


# --- compiled, without a GPU ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kernels_compile_for_sm_80_and_sm_90():
    """To machine code without spilled registers that loads and stores 16 bytes at a time."""
    script = Path(__file__).with_name('compile_kernels.py')
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    env['PYTHONPATH'] = str(ROOT)
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)
    assert len(compiled) == 29
    for kernel in compiled:
        assert kernel['spilled'] == 0, kernel
        if kernel['kernel'] != 'pool_chunks':
            assert kernel['widest_load'] == kernel['widest_map_store'] == 16, kernel


# --- the choice -----------------------------------------------------------------------------------


def test_layer_on_the_cpu_does_not_import_triton():
    script = (
        "import sys, torch\nsys.modules['triton'] = None\nimport sn_mm\n"
        'sn_mm.SwitchNorm(2)(torch.randn(2, 2, 3, 3)).sum().backward()\n'
        'print(sn_mm.ops.backend_for(torch.zeros(2, 3)).__name__)'
    )
    env = {k: v for k, v in os.environ.items() if k != 'SN_MM_BACKEND'} | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', script], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == 'sn_mm.ops.aten', done.stderr


def ops_with(monkeypatch: pytest.MonkeyPatch, forced: str):
    """``sn_mm.ops`` as it is with the environment variable at import."""
    monkeypatch.setenv('SN_MM_BACKEND', forced)
    spec = spec_from_file_location('sn_mm.ops', ops.__file__, submodule_search_locations=[])
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_environment_forces_a_backend(monkeypatch):
    x = torch.zeros(2, 3, device=DEVICE)
    assert ops_with(monkeypatch, 'aten').backend_for(x) is ops.aten
    assert ops_with(monkeypatch, 'triton').backend_for(x) is backend


def test_backend_that_does_not_exist_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="must be 'aten', 'triton' or empty, got 'cuda'"):
        ops_with(monkeypatch, 'cuda')


def test_forced_triton_refuses_what_it_cannot_take(monkeypatch):
    forced = ops_with(monkeypatch, 'triton')
    with pytest.raises(ValueError, match='SN_MM_BACKEND=triton.*float64 maps'):
        forced.backend_for(torch.zeros(2, 3, dtype=torch.float64, device=DEVICE))
    monkeypatch.setattr(backend, 'INTERPRETED', False)
    with pytest.raises(ValueError, match='Triton cannot run on meta: it needs a CUDA device'):
        forced.backend_for(torch.zeros(2, 3, device='meta'))
    monkeypatch.setitem(sys.modules, 'triton.runtime', None)
    with pytest.raises(ValueError, match='it is not installed'):
        ops_with(monkeypatch, 'triton').backend_for(torch.zeros(2, 3, device='meta'))


def test_gpu_on_which_triton_fails_takes_aten_and_says_so(monkeypatch):
    chosen = ops_with(monkeypatch, '')
    monkeypatch.setattr(chosen, '_no_triton', lambda device: 'no C compiler')
    with pytest.warns(UserWarning, match='on cuda:7: no C compiler; SN_MM_BACKEND=aten'):
        assert chosen._triton_or_aten(torch.device('cuda:7')) is ops.aten
