"""Each sweep of each backend against its definition, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sn_mm import SwitchNorm2d, passes
from sn_mm.ops import aten, dense, stats_dtype

BACKENDS = [pytest.param(aten, id='aten')]
SHAPES = [
    (5, 3),
    (2, 3, 7),
    (2, 3, 4, 5),
    (1, 1, 1, 1),
    (3, 1, 2, 2),
    (7, 3, 2, 2),
    (2, 3, 2, 3, 4),
    (2,) * 6,
]
LAYOUTS = [
    *((shape, torch.contiguous_format) for shape in SHAPES),
    *((shape, torch.channels_last) for shape in SHAPES if len(shape) == 4),
    *((shape, torch.channels_last_3d) for shape in SHAPES if len(shape) == 5),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def per_map(array: Tensor, x: Tensor) -> Tensor:
    return array.double().reshape(array.shape + (1,) * (x.dim() - 2))


def over_map(x: Tensor) -> Tensor:
    return x.double().reshape(*x.shape[:2], -1)


@pytest.fixture(params=LAYOUTS, ids=str)
def layout(request):
    """A function that makes a random map."""
    shape, memory_format = request.param

    def make(dtype: torch.dtype, device: torch.device) -> Tensor:
        x = torch.randn(shape, device=device) * 2 + 1
        return x.to(dtype).contiguous(memory_format=memory_format)

    return make


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1) -> None:
    """Within a few roundings of ``dtype``, at values about ``scale``."""
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=8 * eps, atol=16 * eps * scale)


def test_moments_are_the_mean_and_the_biased_variance(backend, layout, dtype, device):
    x = layout(dtype, device)
    mean, var, _ = backend.moments(x, stats_dtype(dtype))
    assert mean.shape == var.shape == x.shape[:2]
    assert mean.dtype == var.dtype == stats_dtype(dtype)
    close(mean, over_map(x).mean(2), mean.dtype)
    close(var, over_map(x).var(2, correction=0), mean.dtype, 4)


def test_moments_of_a_constant_map_have_variance_zero(backend, dtype, device):
    for x in (torch.full((2, 3, 5, 5), 0.5), torch.zeros(2, 3, 5, 5)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = x.to(device, dtype, memory_format=memory_format)
            mean, var, _ = backend.moments(x, stats_dtype(dtype))
            assert (mean == x[0, 0, 0, 0]).all() and (var == 0).all()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_variance_far_from_zero_mean(backend, memory_format, device):
    """E[x^2] - E[x]^2 in float32 would be off by about 10 here."""
    x = torch.randn(2, 3, 40, 40, device=device) + 1e4
    _, var, _ = backend.moments(x.to(memory_format=memory_format), torch.float32)
    torch.testing.assert_close(var.double(), over_map(x).var(2, correction=0), rtol=1e-3, atol=0)


def test_apply_scales_and_shifts(backend, layout, dtype, device):
    x = layout(dtype, device)
    scale, shift = torch.randn(2, *x.shape[:2], dtype=stats_dtype(dtype), device=device)
    y = backend.apply(x, scale, shift)
    assert y.dtype == dtype and y.shape == x.shape and y.stride() == x.stride()
    assert not y._is_view() and y.data_ptr() != x.data_ptr()
    close(y, per_map(scale, x) * x.double() + per_map(shift, x), dtype)


def test_apply_takes_arrays_of_any_strides(backend, device):
    x = torch.randn(2, 3, 4, 4, device=device)
    scale = torch.randn(1, 3, device=device).expand(2, 3)
    shift = torch.randn(3, 2, device=device).t()
    y = backend.apply(x, scale, shift)
    torch.testing.assert_close(y, scale[..., None, None] * x + shift[..., None, None])


def test_the_spare_map_of_the_moments_may_take_the_output(backend, layout, dtype, device):
    x = layout(dtype, device)
    scale, shift = torch.randn(2, *x.shape[:2], dtype=stats_dtype(dtype), device=device)
    spare = backend.moments(x, stats_dtype(dtype))[2]
    y = backend.apply(x, scale, shift, spare)
    assert torch.equal(y, backend.apply(x, scale, shift)) and y.stride() == x.stride()
    assert y.data_ptr() != x.data_ptr()
    assert spare is None or y.data_ptr() == spare.data_ptr()


@pytest.mark.parametrize(
    ('normalizers', 'training', 'sweeps'),
    [
        ('in ln bn', True, ['moments', 'apply', 'grad_sums', 'grad_input']),
        ('in ln bn', False, ['moments', 'apply']),
        ('in ln', False, ['moments', 'apply']),
        ('bn', True, ['moments', 'apply', 'grad_sums', 'grad_input']),
        ('bn', False, ['apply']),
    ],
)
def test_sweeps_of_a_step(normalizers, training, sweeps, monkeypatch):
    """One of each in training; in evaluation on bn alone the map is read once."""
    seen = []

    class Watched:
        def __getattr__(self, name):
            seen.append(name)
            return getattr(aten, name)

    monkeypatch.setattr(passes.ops, 'backend_for', lambda x: Watched())
    layer = SwitchNorm2d(3, normalizers=normalizers.split()).train(training)
    with torch.set_grad_enabled(training):
        y = layer(torch.randn(2, 3, 4, 5, requires_grad=True))
    if training:
        y.sum().backward()
    assert seen == sweeps


def test_grad_sums(backend, layout, dtype, device):
    x, dy = layout(dtype, device), layout(dtype, device)
    mean = torch.randn(x.shape[:2], dtype=stats_dtype(dtype), device=device)
    sum_dy, sum_dy_xc = backend.grad_sums(dy, x, mean)
    assert sum_dy.dtype == sum_dy_xc.dtype == stats_dtype(dtype)
    assert sum_dy.shape == sum_dy_xc.shape == x.shape[:2]
    centred = x.double() - per_map(mean, x)
    close(sum_dy, over_map(dy).sum(2), mean.dtype, 32)
    close(sum_dy_xc, over_map(dy * centred).sum(2), mean.dtype, 64)


def test_grad_input(backend, layout, dtype, device):
    x, dy = layout(dtype, device), layout(dtype, device)
    mean, a, b, c = torch.randn(4, *x.shape[:2], dtype=stats_dtype(dtype), device=device)
    dx = backend.grad_input(dy, x, mean, a, b, c)
    assert dx.dtype == dtype and dx.stride() == x.stride()
    expected = per_map(b, x) * (x.double() - per_map(mean, x)) + per_map(c, x)
    close(dx, per_map(a, x) * dy.double() + expected, dtype, 2)


def test_sweeps_leave_their_arguments_alone(backend, layout, dtype, device):
    x, dy = layout(dtype, device), layout(dtype, device)
    mean, a, b, c = arrays = torch.randn(4, *x.shape[:2], dtype=stats_dtype(dtype), device=device)
    before = [t.clone() for t in (x, dy, arrays)]
    backend.moments(x, mean.dtype)
    backend.apply(x, a, b)
    backend.grad_sums(dy, x, mean)
    backend.grad_input(dy, x, mean, a, b, c)
    assert all(torch.equal(t, old) for t, old in zip((x, dy, arrays), before))


# --- what they are given -----------------------------------------------------------------------


@pytest.mark.parametrize(
    'x',
    [
        torch.randn(2, 3),
        torch.randn(2, 3, 4, 5),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last),
        torch.randn(2, 1, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 3, 4, 5)[1:3],
        torch.randn(0, 3, 4, 5),
    ],
)
def test_dense_maps_are_not_copied(x):
    assert dense(x).data_ptr() == x.data_ptr() and dense(x).stride() == x.stride()


@pytest.mark.parametrize(
    'x',
    [
        torch.randn(2, 3, 5, 4).transpose(2, 3),
        torch.randn(2, 6, 4, 5)[:, ::2],
        torch.randn(1, 3, 1, 1).expand(2, 3, 4, 5),
        torch.randn(3, 2).t(),
        torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last)[:, :3],
    ],
)
def test_other_maps_become_contiguous(x):
    assert dense(x).is_contiguous() and torch.equal(dense(x), x)


def test_gradients_take_the_format_of_the_map():
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    plain = torch.randn(2, 3, 4, 5)
    assert dense(plain, like=last).is_contiguous(memory_format=torch.channels_last)
    assert dense(last, like=plain).is_contiguous()
    assert torch.equal(dense(plain, like=last), plain)


def test_statistics_are_never_in_half_precision():
    assert [stats_dtype(d) for d in DTYPES] == [torch.float64] + [torch.float32] * 3
