"""The backend for the CPU against its contract, ``sn_mm/ops/protocol.py``, in float64.

The judge below is written from the contract's definitions; gradients are autograd's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sn_mm.ops import cpu
from sn_mm.ops.protocol import Moments, Parameters, Running, Settings, Sums

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALL = Settings(('in', 'ln', 'bn'), 1e-5, 0)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture(scope='module', autouse=True)
def kernels() -> None:
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())


@pytest.fixture
def threads():
    """Sets the number of threads; puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- the judge ----


def judge_moments(x: Tensor, setup: Settings) -> Moments:
    x = x.double().flatten(2) if x.dim() > 2 else x.double()[..., None]
    positions = x.shape[2]
    mean, var = x.mean(2), x.var(2, correction=0)
    if setup.correction and positions > 1:
        var = var * positions / (positions - 1)
    moments = {'in': torch.stack((mean, var))}
    for scope, dim in (('ln', 1), ('bn', 0)):
        if scope in setup.scopes:
            wide = mean.mean(dim, keepdim=True)
            spread = ((mean - wide) ** 2).mean(dim, keepdim=True)
            moments[scope] = torch.stack((wide, var.mean(dim, keepdim=True) + spread))
    return moments


def judge_mix(moments: Moments, parameters: Parameters, setup: Settings) -> tuple[Tensor, Tensor]:
    """mu and r."""
    used = len(setup.scopes)
    p, q = (w.double()[-used:].softmax(0) for w in parameters[:2])
    mu = sum(p[k] * moments[scope][0] for k, scope in enumerate(setup.scopes))
    var = sum(q[k] * moments[scope][1] for k, scope in enumerate(setup.scopes))
    return mu, (var + setup.eps).rsqrt()


def per_channel(array: Tensor, x: Tensor) -> Tensor:
    return array.reshape(array.shape + (1,) * (x.dim() - array.dim()))


def judge_normalize(x: Tensor, moments: Moments, p: Parameters, setup: Settings) -> Tensor:
    mu, r = (per_channel(k, x) for k in judge_mix(moments, p, setup))
    y = (x.double() - mu) * r
    if p.weight is not None:
        y = y * per_channel(p.weight.double()[None], x)
    return y if p.bias is None else y + per_channel(p.bias.double()[None], x)


def judge_sums(dy, x, moments, parameters, setup, measured) -> Sums:
    mu, r = judge_mix(moments, parameters, setup)
    m = moments['in'][0]
    w = 1 if parameters.weight is None else parameters.weight.double()
    dy, xc = dy.double(), x.double() - per_channel(m, x)
    s1, s2 = (k.reshape(*x.shape[:2], -1).sum(2) for k in (dy, dy * xc))
    g = torch.stack((w * r * s1, w * r**2 * (r * (s2 + (m - mu) * s1))))
    logits = torch.stack([k.double()[-len(setup.scopes) :] for k in parameters[:2]])
    share = dict(zip(setup.scopes, logits.softmax(1).unbind(1)))

    def wider(scope: str, dim: int) -> Tensor:
        return share[scope].view(2, 1, 1) * g.sum(dim, keepdim=True)

    return Sums(
        torch.stack((s1, s2)),
        wider('ln', 2) if 'ln' in setup.scopes else None,
        wider('bn', 1) if 'bn' in setup.scopes and measured else None,
    )


class Step(NamedTuple):
    """A whole pass each way."""

    moments: Moments
    y: Tensor
    dx: Tensor
    gradients: Parameters


def judge(x, dy, parameters, setup, fixed: Tensor | None = None) -> Step:
    """``fixed``: (2, 1, C), a 'bn' that is given."""
    x, dy = x.detach().double().requires_grad_(), dy.double()
    leaves = [None if p is None else p.double().requires_grad_() for p in parameters]
    moments = judge_moments(x, setup)
    if fixed is not None:
        moments['bn'] = fixed.double()
    y = judge_normalize(x, moments, Parameters(*leaves), setup)
    asked = [x, *(p for p in leaves if p is not None)]
    found = iter(torch.autograd.grad(y, asked, dy, allow_unused=True, materialize_grads=True))
    dx = next(found)
    gradients = Parameters(*(None if p is None else next(found) for p in leaves))
    return Step({k: v.detach() for k, v in moments.items()}, y.detach(), dx, gradients)


def backend_step(x, dy, parameters, setup, running=None, training=True) -> tuple[Step, Sums]:
    measured = running is None or training
    moments = cpu.measure(x, setup, running, training)
    y = cpu.normalize(x, moments, parameters, setup)
    sums, gradients = cpu.reduce(dy, x, moments, parameters, setup, measured)
    total = x.numel() // x.shape[1]
    dx = cpu.propagate(dy, x, moments, sums, parameters, setup, total)
    return Step(moments, y, dx, gradients), sums


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Within ``tolerance`` of the largest value, at least of 1, and a rounding of each."""
    limit = max(float(expected.detach().abs().max()), 1) * tolerance
    rounding = torch.finfo(actual.dtype).eps / 2
    torch.testing.assert_close(
        actual.double().reshape(expected.shape), expected, rtol=1.01 * rounding, atol=limit
    )


# ---- any shape ----


@st.composite
def cases(draw):
    n = draw(st.integers(1, 5))
    c = draw(st.one_of(st.integers(1, 9), st.sampled_from((15, 16, 17, 33, 64, 67, 130, 300))))
    side = st.integers(1, 9)
    size = draw(
        st.one_of(
            st.just(()),
            st.tuples(st.sampled_from((1, 2, 15, 49, 2047, 2049, 4100))),
            st.tuples(side, side),
            st.tuples(side, side, side),
        )
    )
    if n * c * math.prod(size) > 300_000:
        n = 1
    dtype = draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from((torch.contiguous_format, FORMATS.get(len(size) + 2))))
    torch.manual_seed(draw(st.integers(0, 99)))
    spread = torch.rand(2, n, c, *(1 for _ in size)) * 2
    x = (torch.randn(n, c, *size) * (spread[0] + 0.5) + spread[1]).to(dtype)
    dy = torch.randn_like(x)
    x, dy = (t.contiguous(memory_format=layout or torch.contiguous_format) for t in (x, dy))

    scopes = draw(st.sampled_from(('in', 'ln', 'bn', 'in ln', 'in bn', 'ln bn', 'in ln bn')))
    logits = scopes.split()
    used = tuple(k for k in logits if k != 'in') if math.prod(size) == 1 else tuple(logits)
    if not used:
        used, logits = ('ln',), ['in', 'ln']
    setup = Settings(used, 0.05, draw(st.integers(0, 1)))
    kinds = st.sampled_from((torch.float32, torch.float32, torch.float64, *DTYPES))
    parameters = Parameters(
        *(torch.randn(len(logits)).to(draw(kinds)) for _ in range(2)),
        *(torch.randn(c).to(draw(kinds)) if draw(st.booleans()) else None for _ in range(2)),
    )
    return x, dy, parameters, setup, draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from((1, 2, 3)))
def test_both_passes_at_any_shape(case, count):
    x, dy, parameters, setup, is_given = case
    running = fixed = None
    if is_given and 'bn' in setup.scopes:
        running = Running(torch.randn(x.shape[1]), torch.rand(x.shape[1]) + 0.5, None, 0.1)
        fixed = torch.stack(running[:2])[:, None]
    before, grain = torch.get_num_threads(), cpu._GRAIN
    torch.set_num_threads(count)
    cpu._GRAIN = 64
    try:
        step, sums = backend_step(x, dy, parameters, setup, running, training=False)
    finally:
        torch.set_num_threads(before)
        cpu._GRAIN = grain
    expected = judge(x, dy, parameters, setup, fixed)

    if fixed is not None and setup.scopes == ('bn',):
        expected.moments['in'] = fixed.double().expand(2, *x.shape[:2])
    assert set(step.moments) == {'in', *setup.scopes}
    for scope, moments in step.moments.items():
        assert moments.dtype == torch.float32 and moments.is_contiguous()
        target = expected.moments[scope]
        assert moments.shape == target.shape
        close(moments, target)
    for actual, target in ((step.y, expected.y), (step.dx, expected.dx)):
        assert actual.dtype == x.dtype and actual.stride() == x.stride()
        close(actual, target)
    for parameter, actual, target in zip(parameters, step.gradients, expected.gradients):
        if parameter is None:
            assert actual is None
        else:
            assert actual.dtype == parameter.dtype and actual.shape == parameter.shape
            close(actual, target, 1e-4)
    kept = {k: v.double() for k, v in step.moments.items()}
    by_definition = judge_sums(dy, x, kept, parameters, setup, fixed is None)
    for actual, target in zip(sums, by_definition):
        assert (actual is None) == (target is None)
        if actual is not None:
            assert actual.dtype == torch.float32 and actual.shape == target.shape
            close(actual, target)
