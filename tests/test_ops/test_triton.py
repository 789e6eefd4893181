"""The Triton backend: on CUDA if it is available, in Triton's interpreter on the CPU elsewhere.

The interpreter takes a few milliseconds for each tile: the batches here are small, and small tiles
make programs share them as they share large ones. It shortens float32 to bfloat16 without rounding.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton_interpreter import why_unusable

import sn_mm.layer
from sn_mm import SwitchNorm, autograd, functional, ops
from sn_mm.equations import mask_instance
from sn_mm.ops.protocol import Moments, Parameters, Running, Settings

triton = pytest.importorskip('triton', '3.0', 'the kernels need Triton 3.0')
import triton.language as tl  # noqa: E402
from triton_launches import do_not_specialize, recorded_launches  # noqa: E402

from sn_mm.ops.triton import kernels, tiling  # noqa: E402
from sn_mm.ops.triton import launch as backend  # noqa: E402
from sn_mm.ops.triton.kernels.tiles import block_of, chunk_of, tile_of  # noqa: E402
from sn_mm.ops.triton.start import kind  # noqa: E402

DEVICE = torch.device('cpu' if backend.INTERPRETED else 'cuda')
pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
FORMATS = ['contiguous', 'channels_last']
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SUBSETS = [('in',), ('ln',), ('bn',), ('in', 'ln'), ('in', 'bn'), ('ln', 'bn'), ('in', 'ln', 'bn')]
ALL = SUBSETS[-1]
EPS = {torch.float64: 2**-23, torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}


@pytest.fixture(autouse=True)
def _skips_where_the_interpreter_is_broken(monkeypatch):
    if backend.INTERPRETED and (why := why_unusable()):
        executor = importlib.import_module('triton.runtime.interpreter').GridExecutor
        monkeypatch.setattr(executor, '__call__', lambda *args, **kwargs: pytest.skip(why))


@contextmanager
def small_tiles(tile: int = 16, programs: int = 64) -> Iterator[None]:
    """Tiles in which small batches are cut into chunks and blocks, several of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, 'TILE', tile)
        patch.setattr(tiling, 'PROGRAMS', programs)
        patch.setattr(tiling, 'CHUNK_BLOCKS', (1, 4))
        patch.setattr(tiling, 'CHANNEL_BLOCK', 4)
        patch.setattr(backend, '_BLOCK', 2)
        yield


@pytest.fixture
def chunked() -> Iterator[None]:
    with small_tiles():
        yield


def random_map(shape: tuple[int, ...], dtype: torch.dtype, memory_format: str) -> Tensor:
    x = (torch.randn(shape, device=DEVICE) * 2 + 1).to(dtype)
    if memory_format == 'contiguous':
        return x
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()])


def random_parameters(
    channels: int, logits: int, dtype: torch.dtype = torch.float32, affine: bool = True
) -> Parameters:
    def random(size: int) -> Tensor:
        return torch.randn(size, device=DEVICE).to(dtype)

    weight, bias = (random(channels), random(channels)) if affine else (None, None)
    return Parameters(random(logits), random(logits), weight, bias)


def random_running(
    channels: int, dtype: torch.dtype = torch.float32, momentum: float | None = 0.25
) -> Running:
    mean, var = torch.randn(channels, device=DEVICE), torch.rand(channels, device=DEVICE) + 0.5
    return Running(mean.to(dtype), var.to(dtype), torch.tensor(3, device=DEVICE), momentum)


def clone(running: Running) -> Running:
    return Running(*(t.clone() if isinstance(t, Tensor) else t for t in running))


def close(result: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    eps = EPS[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=8 * eps, atol=16 * eps * scale)


# --- the judge ------------------------------------------------------------------------------------


def expected_moments(x: Tensor, layer: Settings, given: Running | None) -> Moments:
    moments = reference.moments(x, layer.scopes, layer.correction)
    if given is not None:
        moments['bn'] = torch.stack((given.mean, given.var)).double()[:, None]
    return moments


def expected_running(x: Tensor, layer: Settings, running: Running) -> tuple[Tensor, Tensor]:
    share = 1 / (int(running.batches) + 1) if running.momentum is None else running.momentum
    logits = torch.zeros(2, len(layer.scopes), device=DEVICE)
    return reference.switch_norm(
        [x], *logits, running_mean=running.mean, running_var=running.var, momentum=share,
        normalizers=layer.scopes, correction=layer.correction,
    )[1:]  # fmt: skip


def check_passes(
    x: Tensor,
    dy: Tensor,
    layer: Settings,
    parameters: Parameters,
    running: Running | None = None,
    training: bool = True,
) -> None:
    """All that happens in a layer that is not synchronized, against the definitions."""
    has_batch = 'bn' in layer.scopes
    given = running if has_batch and not training else None
    before = None if running is None else clone(running)
    dtype = x.dtype

    moments = backend.measure(x, layer, running, training)
    expected = expected_moments(x, layer, given)
    if given is not None and layer.scopes == ('bn',):
        expected['in'] = expected['bn'].expand_as(expected['in'])
    assert moments.keys() == expected.keys()
    for scope, result in moments.items():
        assert result.dtype == torch.float32 and result.is_contiguous()
        close(result, expected[scope], torch.float32, 4)
    if running is not None and has_batch and training:
        for result, truth in zip(running[:2], expected_running(x, layer, before)):
            close(result, truth, running.mean.dtype, 4)
        assert running.batches == before.batches + 1
    elif running is not None:
        assert all(torch.equal(new, old) for new, old in zip(running[:3], before))

    y = backend.normalize(x, moments, parameters, layer)
    assert y.dtype == dtype and y.stride() == x.stride() and y.data_ptr() != x.data_ptr()
    measured = has_batch and given is None
    sums, grads = backend.reduce(dy, x, moments, parameters, layer, measured)
    truth = reference.backward_sums(
        dy, x, moments, *parameters[:3], layer.scopes, layer.eps, measured
    )
    for result, exact in zip(sums, truth):
        assert (result is None) == (exact is None)
        if result is not None:
            assert result.shape == exact.shape and result.dtype == torch.float32
            close(result, exact, torch.float32, 64)
    total = x.numel() // x.shape[1]
    dx = backend.propagate(dy, x, moments, sums, parameters, layer, total)
    assert dx.dtype == dtype and dx.stride() == x.stride()

    x64 = x.detach().double().requires_grad_()
    parameters64 = [None if p is None else p.double().requires_grad_() for p in parameters]
    statistics = (None, None) if given is None else given[:2]
    judged = reference.switch_norm(
        [x64], *parameters64, *statistics, training=given is None, eps=layer.eps,
        normalizers=layer.scopes, correction=layer.correction,
    )  # fmt: skip
    close(y, judged.outputs[0], dtype, 4)
    judged.outputs[0].backward(dy.double())
    close(dx, x64.grad, dtype, 16)
    for result, parameter, judge in zip(grads, parameters, parameters64):
        assert (result is None) == (parameter is None)
        if result is not None:
            assert result.dtype == parameter.dtype and result.shape == parameter.shape
            close(result, judge.grad, parameter.dtype, 256)


# --- both passes ----------------------------------------------------------------------------------


def test_passes_for_any_batch():
    hypothesis = pytest.importorskip('hypothesis')
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=30, deadline=None)
    @hypothesis.given(data=st.data())
    def check(data):
        shape = data.draw(st.tuples(*(st.integers(1, size) for size in (3, 9, 6, 6))), 'shape')
        dtype, memory_format = data.draw(st.sampled_from([*product(DTYPES, FORMATS)]), 'map')
        one = shape[2:] == (1, 1)
        scopes = data.draw(
            st.sampled_from([s for s in SUBSETS if s != ('in',) or not one]), 'scopes'
        )
        layer = Settings(scopes, 0.1, data.draw(st.integers(0, 1), 'correction'))
        parameters = random_parameters(
            shape[1],
            len(scopes),
            data.draw(st.sampled_from(DTYPES), 'parameters'),
            data.draw(st.booleans()),
        )
        if one and 'in' in scopes:
            parameters = Parameters(*map(mask_instance, parameters[:2]), *parameters[2:])
        running = data.draw(st.sampled_from([None, random_running(shape[1])]), 'running')
        x, dy = (random_map(shape, dtype, memory_format) for _ in range(2))
        with small_tiles(*data.draw(st.sampled_from([(16, 32), (64, 8), (4096, 1)]), 'tiles')):
            check_passes(x, dy, layer, parameters, running, data.draw(st.booleans(), 'training'))

    check()


@pytest.mark.parametrize('shape', [(5, 3), (2, 3, 7), (2, 3, 2, 3, 4), (1, 2, 1, 40), (1, 1, 2)])
def test_passes_for_any_number_of_axes(shape):
    x, dy = (random_map(shape, torch.float32, 'contiguous') for _ in range(2))
    parameters = random_parameters(shape[1], 3)
    if x[0, 0].numel() == 1:
        parameters = Parameters(*map(mask_instance, parameters[:2]), *parameters[2:])
    check_passes(x, dy, Settings(ALL, 0.1, 0), parameters)


def test_passes_for_channels_last_volumes():
    x, dy = (random_map((2, 3, 2, 3, 4), torch.float32, 'channels_last') for _ in range(2))
    check_passes(x, dy, Settings(ALL, 0.1, 0), random_parameters(3, 3))


@pytest.mark.parametrize(('memory_format', 'correction'), zip(FORMATS, (0, 1)))
def test_chunks_instances_and_channels_beyond_one_tile_are_pooled(
    chunked, memory_format, correction
):
    x, dy = (random_map((3, 6, 7, 11), torch.float32, memory_format) for _ in range(2))
    tiles = tiling.tiling(x, reduction=True)
    (_, block_chunks, block_channels), _ = tiling.pool_tile(2)
    assert 1 < block_chunks and block_channels < 6
    assert tiles.chunks > block_chunks or memory_format == 'contiguous'
    layer = Settings(ALL, 0.1, correction)
    check_passes(x, dy, layer, random_parameters(6, 3), random_running(6))


@pytest.mark.parametrize('memory_format', FORMATS)
def test_maps_that_are_not_dense_are_made_so(memory_format):
    wide = random_map((2, 6, 5, 8), torch.float16, memory_format)
    for x in (wide[:, ::2], wide[..., 1:5], wide.transpose(2, 3), wide[:1].expand(3, -1, -1, -1)):
        x = ops.dense(x)
        dy = ops.dense(torch.randn_like(x), like=x)
        check_passes(x, dy, Settings(ALL, 0.1, 0), random_parameters(x.shape[1], 3))


@pytest.mark.parametrize('laid', [
    lambda t: t.repeat_interleave(2)[::2], lambda t: torch._neg_view(-t),
], ids=['strided', 'negated'])  # fmt: skip
def test_parameters_whose_memory_does_not_hold_their_values(laid):
    x, dy = (random_map((2, 3, 4), torch.float32, 'contiguous') for _ in range(2))
    parameters = Parameters(*map(laid, random_parameters(3, 3)))
    running = random_running(3)
    running = running._replace(mean=laid(running.mean), var=laid(running.var))
    check_passes(x, dy, Settings(ALL, 0.1, 0), parameters, running)


@pytest.mark.parametrize('momentum', [0.25, None, 0.0, 1.0])
@pytest.mark.parametrize('dtype', [*DTYPES, torch.float64], ids=str)
def test_running_statistics_of_any_dtype_move(chunked, dtype, momentum):
    x = random_map((3, 6, 5), torch.float32, 'contiguous')
    running = random_running(6, dtype, momentum)
    before = clone(running)
    layer = Settings(ALL, 1e-5, 0)
    backend.measure(x, layer, running, training=True)
    for result, truth in zip(running, expected_running(x, layer, before)):
        assert result.dtype == dtype
        close(result, truth, dtype)
    assert running.batches == 4


def test_running_statistics_without_a_count_move(chunked):
    x = random_map((3, 6, 5), torch.float32, 'contiguous')
    running = random_running(6)._replace(batches=None)
    before = running._replace(mean=running.mean.clone(), var=running.var.clone())
    layer = Settings(('bn',), 1e-5, 1)
    backend.measure(x, layer, running, training=True)
    for result, truth in zip(running, expected_running(x, layer, before)):
        close(result, truth, torch.float32)


def test_given_batch_scope_is_a_copy(chunked):
    x, running = random_map((3, 6, 5), torch.float32, 'contiguous'), random_running(6)
    moments = backend.measure(x, Settings(ALL, 1e-5, 0), running, training=False)
    before = moments['bn'].clone()
    running.mean.zero_()
    assert torch.equal(moments['bn'], before)


def test_given_batch_scope_alone_does_not_read_the_map():
    x, running = torch.full((2, 6, 5), torch.nan, device=DEVICE), random_running(6)
    moments = backend.measure(x, Settings(('bn',), 1e-5, 0), running, training=False)
    assert moments.keys() == {'in', 'bn'}
    assert torch.equal(moments['in'], moments['bn'].expand(2, 2, 6))


# --- across ranks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('scopes', 'correction'), zip([s for s in SUBSETS if 'bn' in s], (0, 1, 0, 1))
)
def test_ranks_see_the_union_of_their_batches(chunked, scopes, correction):
    """Two ranks with inputs of different sizes and a third one without any."""
    xs = [random_map(s, torch.float32, 'contiguous') for s in ((2, 3, 4, 5), (1, 3, 7, 3))]
    dys = [torch.randn_like(x) for x in xs]
    layer, parameters = Settings(scopes, 0.1, correction), random_parameters(3, len(scopes))
    running = random_running(3)
    xs64 = [x.double().requires_grad_() for x in xs]
    parameters64 = [p.double().requires_grad_() for p in parameters]
    judged = reference.switch_norm(
        xs64, *parameters64, running.mean, running.var, momentum=0.25, eps=0.1, normalizers=scopes,
        correction=correction,
    )  # fmt: skip
    for y, dy in zip(judged.outputs, dys):
        y.backward(dy.double(), retain_graph=True)

    moments = [backend.measure(x, layer, None, training=True) for x in xs]
    parts = [backend.contribute(m['bn'], x.numel() // 3) for m, x in zip(moments, xs)]
    parts.append(backend.contribute(torch.zeros(2, 1, 3, device=DEVICE), 0))
    totals = sum(parts)
    assert totals.dtype == torch.float64
    batch = backend.unite(totals, torch.float32, layer, running)
    for m in moments:
        m['bn'] = batch
    for result, truth in zip(running, judged[1:]):
        close(result, truth, torch.float32, 4)
    assert running.batches == 4
    sums, grads = zip(
        *(backend.reduce(dy, x, m, parameters, layer, True) for dy, x, m in zip(dys, xs, moments))
    )
    batch_sums = sum(s.batch for s in sums)
    for i, x in enumerate(xs):
        y = backend.normalize(x, moments[i], parameters, layer)
        close(y, judged.outputs[i], torch.float32, 4)
        united = sums[i]._replace(batch=batch_sums)
        dx = backend.propagate(dys[i], x, moments[i], united, parameters, layer, totals[0])
        close(dx, xs64[i].grad, torch.float32, 16)
    for result, judge in zip(map(sum, zip(*grads)), parameters64):
        close(result, judge.grad, torch.float32, 256)


@pytest.mark.parametrize('momentum', [0.25, None])
def test_ranks_without_positions_leave_running_statistics(chunked, momentum):
    running = random_running(5, momentum=momentum)
    before = clone(running)
    empty = backend.contribute(torch.zeros(2, 1, 5, device=DEVICE), 0)
    batch = backend.unite(empty, torch.float32, Settings(ALL, 1e-5, 0), running)
    assert (batch == 0).all()
    assert all(torch.equal(new, old) for new, old in zip(running[:3], before))


def test_cumulative_running_statistics_of_ranks(chunked):
    running = random_running(5, momentum=None)
    old = running.mean.clone()
    batch = torch.rand(2, 1, 5, device=DEVICE)
    totals = backend.contribute(batch, 7)
    united = backend.unite(totals, torch.float32, Settings(ALL, 1e-5, 0), running)
    torch.testing.assert_close(united, batch)
    torch.testing.assert_close(running.mean, 0.75 * old + 0.25 * batch[0, 0])
    assert running.batches == 4


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('memory_format', FORMATS)
def test_equal_values_have_variance_zero(chunked, memory_format, dtype):
    x = torch.full_like(random_map((2, 5, 5, 25), dtype, memory_format), 1e4)
    for mean, var in backend.measure(x, Settings(ALL, 1e-5, 0), None, True).values():
        assert (mean == x[0, 0, 0, 0].float()).all() and (var == 0).all()


@pytest.mark.parametrize('tile', [16, 4096])
@pytest.mark.parametrize('memory_format', FORMATS)
def test_moments_far_from_zero_are_as_good_as_batch_norm_has_them(memory_format, tile):
    x = random_map((1, 6, 9, 19), torch.float32, memory_format) + 1e4
    with small_tiles(tile, 1024):
        moments = backend.measure(x, Settings(ALL, 1e-5, 0), None, True)
    batch = torch.nn.BatchNorm2d(6, momentum=1, device=DEVICE)
    batch(x)
    batch_var = batch.running_var.double() * (9 * 19 - 1) / (9 * 19)
    expected = expected_moments(x, Settings(ALL, 1e-5, 0), None)
    for scope, (mean, var) in moments.items():
        expected_mean, expected_var = expected[scope]
        bounds = 4 * torch.finfo(torch.float32).eps, 1e4 * torch.finfo(torch.float32).eps
        if scope != 'ln':
            bound = (batch_var - expected['in'][1]).abs().max()
            assert (var - expected_var).abs().max() <= max(bound, bounds[0])
        torch.testing.assert_close(var.double(), expected_var, rtol=1e-6, atol=1e-6)
        bound = (batch.running_mean - expected['in'][0]).abs().max()
        assert (mean - expected_mean).abs().max() <= max(bound, bounds[1])


@pytest.mark.parametrize('memory_format', FORMATS)
def test_moments_where_the_first_value_is_nothing_like_the_others(chunked, memory_format):
    x = random_map((1, 2, 9, 15), torch.float32, memory_format) + 1e4
    x[:, :, 0, 0] = 0
    layer = Settings(ALL, 1e-5, 0)
    moments, expected = backend.measure(x, layer, None, True), expected_moments(x, layer, None)
    for scope in ALL:
        torch.testing.assert_close(moments[scope].double(), expected[scope], rtol=1e-6, atol=0)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_output_far_from_zero(chunked, memory_format):
    x = random_map((2, 3, 5, 6), torch.float32, memory_format) + 1e4
    layer, parameters = Settings(ALL, 1e-5, 0), random_parameters(3, 3)
    y = backend.normalize(x, backend.measure(x, layer, None, True), parameters, layer)
    expected = reference.switch_norm([x], *parameters).outputs[0]
    torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.filterwarnings('ignore:invalid value:RuntimeWarning')
@pytest.mark.parametrize(
    ('value', 'memory_format'),
    [(torch.inf, FORMATS[0]), (-torch.inf, FORMATS[1]), (torch.nan, FORMATS[0])],
)
def test_a_value_that_is_not_finite_spreads_as_far_as_its_scopes(chunked, memory_format, value):
    x = random_map((2, 6, 5, 5), torch.float32, memory_format)
    dy, running = torch.randn_like(x), random_running(6)
    x[1, 2, 2, 2] = value
    layer, parameters = Settings(ALL, 1e-5, 0), random_parameters(6, 3)
    moments = backend.measure(x, layer, running, True)
    row, column = torch.arange(2, device=DEVICE) != 1, torch.arange(6, device=DEVICE) != 2
    finite = {'in': row[:, None] | column, 'ln': row[:, None], 'bn': column[None]}
    for scope, result in moments.items():
        assert torch.equal(result.isfinite(), finite[scope].expand(result.shape)), scope
    assert torch.equal(running.mean.isfinite(), column)
    assert torch.equal(running.var.isfinite(), column)
    both = finite['ln'] & finite['bn']
    y = backend.normalize(x, moments, parameters, layer)
    assert torch.equal(y.isfinite().all((2, 3)), both)
    sums, grads = backend.reduce(dy, x, moments, parameters, layer, True)
    dx = backend.propagate(dy, x, moments, sums, parameters, layer, 50)
    assert not dx.isfinite()[1].any() and not dx.isfinite()[:, 2].any()
    assert not grads.mean_weight.isfinite().any() and not grads.var_weight.isfinite().any()
    united = backend.unite(backend.contribute(moments['bn'], 50), torch.float32, layer, None)
    assert torch.equal(united.isfinite(), finite['bn'].expand(2, 1, 6))


def test_results_are_the_same_from_run_to_run(chunked):
    x, dy = (random_map((3, 6, 7, 11), torch.float32, 'channels_last') for _ in range(2))
    layer, parameters = Settings(ALL, 1e-5, 0), random_parameters(6, 3)

    def results() -> list[Tensor]:
        moments = backend.measure(x, layer, None, True)
        sums, grads = backend.reduce(dy, x, moments, parameters, layer, True)
        return [*moments.values(), *sums, *grads]

    for first, second in zip(results(), results()):
        assert torch.equal(first, second)


# --- launches -------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts operations of torch that are neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        allocations = ('empty', 'empty_like', 'new_empty', 'empty_strided', 'new_empty_strided')
        name = func.overloadpacket.__name__
        if not func.is_view and name not in allocations:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def count_launches(
    training: bool,
    scopes: tuple[str, ...] = ALL,
    momentum: float | None = 0.1,
    synchronized: bool = False,
    run: bool = False,
) -> tuple[int, int]:
    """Kernels and operations of a layer's passes, all_reduce among them: forward and backward.

    The count does not depend on whether the kernels ``run``: nothing reads results on the host.
    """
    x = torch.randn(2, 4, 9, 15, device=DEVICE)
    layer, parameters = Settings(scopes, 1e-5, 1), random_parameters(4, len(scopes))
    running, total = random_running(4, momentum=momentum), 2 * 9 * 15
    with recorded_launches(run) as launches, Operations() as operations:
        moments = backend.measure(x, layer, None if synchronized else running, training)
        if synchronized:
            totals = backend.contribute(moments['bn'], total)
            totals.add_(0)  # for the all_reduce
            moments['bn'] = backend.unite(totals, torch.float32, layer, running)
            total = totals[0]
        backend.normalize(x, moments, parameters, layer)
        forward = len(launches) + len(operations.names)
        measured = training and 'bn' in scopes
        sums, _ = backend.reduce(x, x, moments, parameters, layer, measured)
        if synchronized:
            sums.batch.add_(0)
        backend.propagate(x, x, moments, sums, parameters, layer, total)
        return forward, len(launches) + len(operations.names) - forward


@pytest.mark.parametrize('tiles', [(4096, 1024), (16, 64)], ids=['one-chunk', 'chunks'])
@pytest.mark.parametrize('scopes', SUBSETS, ids='-'.join)
def test_launches_of_a_layer(scopes, tiles):
    with small_tiles(*tiles):
        assert count_launches(True, scopes) == (3, 4)
        assert count_launches(False, scopes)[0] == (2 if scopes == ('bn',) else 3)
        if 'bn' in scopes:
            assert count_launches(True, scopes, momentum=None) == (4, 4)
            assert count_launches(True, scopes, synchronized=True) == (6, 5)
            assert count_launches(True, scopes, momentum=None, synchronized=True) == (7, 5)


def test_launches_of_a_layer_whose_kernels_run():
    assert count_launches(True, run=True) == (3, 4)
    assert count_launches(True, synchronized=True, run=True) == (6, 5)
    assert count_launches(False, run=True)[0] == 3


def meta_step(n: int, c: int, h: int, w: int, memory_format: torch.memory_format) -> None:
    """Training and evaluation of a layer, as far as the host is concerned."""
    x = torch.empty(n, c, h, w, device='meta').contiguous(memory_format=memory_format)
    logits, vector = x.new_empty(3), x.new_empty(c)
    layer, parameters = Settings(ALL, 1e-5, 0), Parameters(logits, logits, vector, vector)
    running = Running(vector, vector, x.new_empty((), dtype=torch.int64), 0.1)
    for training in (True, False):
        moments = backend.measure(x, layer, running, training)
        backend.normalize(x, moments, parameters, layer)
    sums, _ = backend.reduce(x, x, moments, parameters, layer, True)
    backend.propagate(x, x, moments, sums, parameters, layer, n * h * w)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_nothing_waits_for_the_device(memory_format):
    """Meta tensors have no values to wait for."""
    with recorded_launches(run=False):
        meta_step(2, 6, 5, 7, memory_format)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_few_variants_are_compiled_for_images_of_all_sizes(memory_format):
    """A ResNet-50 over 3,000 steps of images of 1 to 4 a batch, short side 480 to 800 pixels."""
    if backend.INTERPRETED and not hasattr(kernels.pool, 'kwargs'):
        pytest.skip("before Triton 3.3 the interpreter does not keep the decorator's arguments")
    channels_last = memory_format == torch.channels_last
    random = torch.Generator().manual_seed(0)
    stages = [(4, 64), (4, 256), (8, 128), (8, 512), (16, 256), (16, 1024), (32, 512), (32, 2048)]
    shapes = {}  # one for each way to be cut
    for _ in range(3000):
        n, h, w = (
            int(torch.randint(*r, (), generator=random)) for r in ((1, 5), (15, 26), (15, 43))
        )
        for stride, c in stages:
            size = [-(-32 * side // stride) for side in (h, w)]
            cuts = [
                tiling.cut(channels_last, n, c, size[0] * size[1], reduction, 4096, 1024)
                for reduction in (True, False)
            ]
            constants = [(tiles.constants, tiles.warps) for tiles in cuts]
            shapes[str((*constants, tiling.pool_tile(cuts[0].chunks)))] = n, c, *size
    with recorded_launches(run=False) as launches:
        for shape in shapes.values():
            meta_step(*shape, memory_format)
    for launch in launches:
        numbers = {k for k, v in launch.arguments.items() if isinstance(v, int) and k.islower()}
        assert numbers - {'num_warps'} <= {*do_not_specialize(launch.kernel)}, launch.name
    counts = {}
    for name, *_ in {launch.variant() for launch in launches}:
        counts[name] = counts.get(name, 0) + 1
    print(counts)
    assert all(count <= 12 for count in counts.values()), counts


# --- sizes that no test can hold -----------------------------------------------------------------


@triton.jit
def last_offsets(
    result, program, instances, channels, positions, blocks, chunks, steps,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    channels, positions = kernels.tiles.sizes(channels, positions, CHANNELS_LAST, UNIT)
    n, c, mask = block_of(
        program, instances, channels, blocks, chunks, CHANNELS_LAST, BLOCK_CHANNELS
    )
    number, first, end = chunk_of(
        program, positions, blocks, chunks, steps, CHANNELS_LAST, BLOCK_POSITIONS
    )
    origin, inside, stride = tile_of(
        program, channels, positions, blocks, chunks, CHANNELS_LAST, BLOCK_CHANNELS, BLOCK_POSITIONS
    )
    begin = first + (end - 1 - first) // BLOCK_POSITIONS * BLOCK_POSITIONS
    valid = (begin + tl.arange(0, BLOCK_POSITIONS) < positions)[None, :] & mask[:, None]
    offsets = tl.where(valid, origin + begin * stride + inside, -1)
    tl.store(result, tl.max(tl.max(offsets, 1), 0))
    at = number * instances * channels + n * channels + c
    tl.store(result + 1, tl.max(tl.where(mask, at, -1), 0))


@pytest.mark.parametrize(
    ('channels_last', 'instances', 'channels', 'positions'),
    [
        (False, 2**10, 2**10, 2**13),  # many channels of instances
        (False, 1, 2, 2**32 + 5),  # large images
        (True, 2**12, 2**8, 2**13),  # many images
        (True, 2, 2**3, 2**33),  # large images
        (True, 2, 2**28, 2**5),  # more channels than fit in a tile
    ],
)
@pytest.mark.parametrize('reduction', [True, False])
def test_offsets_beyond_32_bits(channels_last, instances, channels, positions, reduction):
    """The last value of the last program's tile, as the kernels have it, ends the tensor."""
    tiles = tiling.cut(channels_last, instances, channels, positions, reduction, 4096, 1024)
    assert tiles.programs < 2**31
    result = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    last_offsets[1,](result, tiles.programs - 1, *tiles.sizes, *tiles.constants)
    rows = instances * channels
    assert result.tolist() == [rows * positions - 1, tiles.chunks * rows - 1]


def test_launches_on_two_devices_are_of_two_kinds():
    """A kernel is compiled and loaded for one device."""
    kinds = {kind('contribute', [torch.zeros(2, device=d)], (), 4) for d in (DEVICE, 'meta')}
    assert len(kinds) == 2


# --- the layer ------------------------------------------------------------------------------------


@pytest.fixture
def on_triton(monkeypatch):
    """Layers take the Triton backend, also where a mode watches their operations."""
    monkeypatch.setattr(autograd, '_backend', lambda x, look: backend)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_layer_on_triton(on_triton, memory_format, training):
    layer = SwitchNorm(3).to(DEVICE).train(training)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    parameters = {k: p.detach().double().requires_grad_() for k, p in layer.named_parameters()}
    running = {'running_mean': layer.running_mean.clone(), 'running_var': layer.running_var.clone()}
    x = random_map((2, 3, 5, 6), torch.float32, memory_format).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    dy = random_map((2, 3, 5, 6), torch.float32, 'contiguous')

    with recorded_launches() as launches:
        y = layer(x)
        y.backward(dy)
    expected = reference.switch_norm([x64], training=training, **parameters, **running)
    expected.outputs[0].backward(dy.double())
    assert len(launches) == 3 + 4
    tolerance = {'rtol': 1e-4, 'atol': 1e-5, 'check_dtype': False}
    torch.testing.assert_close(y, expected.outputs[0], **tolerance)
    torch.testing.assert_close(x.grad, x64.grad, **tolerance)
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, parameters[name].grad, **tolerance)
    torch.testing.assert_close(layer.running_var, expected.running_var, **tolerance)


class AllReduce:
    """Two equal ranks, in place of a collective: it counts as one operation."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, numbers: Tensor, *called: Any) -> Tensor:
        self.calls += 1
        return numbers.mul_(2)


def launches_of(function: Callable[[], Any]) -> tuple[list[str], Any]:
    """Names of the kernels and operations that a call starts, and its result."""
    with recorded_launches() as launches, Operations() as operations:
        result = function()
    return [launch.name for launch in launches] + operations.names, result


@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('synchronized', [False, True], ids=['local', 'synchronized'])
def test_bounds_on_the_launches_of_a_layer(monkeypatch, on_triton, synchronized, momentum):
    """Forward 5, backward 6, evaluation 3; synchronized three more each way."""
    monkeypatch.setattr(autograd, 'sum_over_ranks', AllReduce())
    if synchronized:
        monkeypatch.setattr(sn_mm.layer, 'resolve_group', lambda *arguments: 'two ranks')
        monkeypatch.setattr(functional, 'check_group', lambda group: None)
    layer = SwitchNorm(3, momentum=momentum).to(DEVICE)
    x = torch.randn(2, 3, 5, 6, device=DEVICE, requires_grad=True)
    dy = torch.ones_like(x)
    more = 3 * synchronized
    forward, y = launches_of(lambda: layer(x))
    assert len(forward) <= 5 + more, forward
    inputs = x, *layer.parameters()
    backward, _ = launches_of(lambda: torch.autograd.grad(y, inputs, dy))
    assert len(backward) <= 6 + more, backward
    evaluation, _ = launches_of(lambda: layer.eval()(x))
    assert len(evaluation) <= 3, evaluation
    assert autograd.sum_over_ranks.calls == 2 * synchronized


# --- the choice -----------------------------------------------------------------------------------


def test_layer_on_the_cpu_does_not_import_triton():
    script = (
        "import sys, torch\nsys.modules['triton'] = None\nimport sn_mm\n"
        'sn_mm.SwitchNorm(2)(torch.randn(2, 2, 3, 3)).sum().backward()\n'
        "print('sn_mm.ops.triton' in sys.modules)"
    )
    env = {k: v for k, v in os.environ.items() if k != 'SN_MM_BACKEND'} | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', script], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr


def dispatch_with(monkeypatch: pytest.MonkeyPatch, forced: str):
    """``sn_mm.ops.dispatch`` as it is with the environment variable at import."""
    monkeypatch.setenv('SN_MM_BACKEND', forced)
    spec = spec_from_file_location('sn_mm.ops.dispatch', ops.dispatch.__file__)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_environment_forces_a_backend(monkeypatch):
    x = torch.zeros(2, 3, device=DEVICE)
    assert dispatch_with(monkeypatch, 'aten').backend_for(x) is ops.dispatch.aten
    assert dispatch_with(monkeypatch, 'triton').backend_for(x) is backend


def test_backend_that_does_not_exist_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"must be one of \(.*'triton'.*\) or empty, got 'cuda'"):
        dispatch_with(monkeypatch, 'cuda')


def test_forced_triton_refuses_what_it_cannot_take(monkeypatch):
    forced = dispatch_with(monkeypatch, 'triton').backend_for
    with pytest.raises(ValueError, match='SN_MM_BACKEND=triton.*float64'):
        forced(torch.zeros(2, 3, dtype=torch.float64, device=DEVICE))
    monkeypatch.setattr(backend, 'INTERPRETED', False)
    with pytest.raises(ValueError, match='cannot run on meta: it needs a CUDA device'):
        forced(torch.zeros(2, 3, device='meta'))
    monkeypatch.setitem(sys.modules, 'sn_mm.ops.triton', None)
    with pytest.raises(ValueError, match='it is not installed'):
        dispatch_with(monkeypatch, 'triton').backend_for(torch.zeros(2, 3, device='meta'))


def test_gpu_on_which_triton_fails_takes_aten_and_says_so(monkeypatch):
    chosen = dispatch_with(monkeypatch, '')
    broken = chosen._BACKENDS['triton']._replace(unavailable=lambda device: 'no C compiler')
    monkeypatch.setitem(chosen._BACKENDS, 'triton', broken)
    with pytest.warns(UserWarning, match='on cuda:7: no C compiler; SN_MM_BACKEND=aten'):
        assert chosen._kernels_or_aten('triton', torch.device('cuda:7')) is ops.dispatch.aten


def test_a_kernel_that_fails_before_the_first_layer_is_one_warning(monkeypatch, recwarn):
    def fails(*args, **kwargs):
        raise RuntimeError('no compiler\nfor this driver')

    monkeypatch.setattr(kernels, 'unite', {(1,): fails})
    chosen = dispatch_with(monkeypatch, '')
    for _ in range(2):
        assert chosen._kernels_or_aten('triton', DEVICE) is ops.dispatch.aten
    (warning,) = recwarn
    assert f'on {DEVICE}: RuntimeError: no compiler for this driver; SN' in str(warning.message)


def test_a_triton_too_old_for_the_kernels_is_named(monkeypatch):
    monkeypatch.setattr(triton, '__version__', '2.3.1')
    why = ops.dispatch._no_triton(DEVICE)
    assert why == 'it needs Triton 3.0 or later, and Triton 2.3.1 is installed'
