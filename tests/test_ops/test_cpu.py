"""The backend for the CPU against its contract, ``sn_mm/ops/protocol.py``."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sn_mm.equations import mask_instance
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


# ---- both passes, by the judge and by the backend ----


def judge_moments(x: Tensor, setup: Settings) -> Moments:
    return reference.moments(x, setup.scopes, setup.correction)


class Step(NamedTuple):
    """A whole pass each way."""

    moments: Moments
    y: Tensor
    dx: Tensor
    gradients: Parameters


def judge(x, dy, parameters, setup, fixed: Tensor | None = None) -> Step:
    """``fixed``: (2, 1, C), a 'bn' that is given."""
    x = x.detach().double().requires_grad_()
    leaves = [None if p is None else p.double().requires_grad_() for p in parameters]
    running = (None, None) if fixed is None else fixed[:, 0]
    y = reference.switch_norm(
        [x], *leaves, *running, training=fixed is None, eps=setup.eps,
        normalizers=setup.scopes, correction=setup.correction,
    ).outputs[0]  # fmt: skip
    asked = [x, *(p for p in leaves if p is not None)]
    found = torch.autograd.grad(y, asked, dy.double(), allow_unused=True, materialize_grads=True)
    dx, *found = found
    gradients = Parameters(*(None if p is None else found.pop(0) for p in leaves))
    moments = judge_moments(x.detach(), setup)
    if fixed is not None:
        moments['bn'] = fixed.double()
    return Step(moments, y.detach(), dx, gradients)


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
    if math.prod(size) == 1 and scopes == 'in':
        scopes = 'in ln'
    setup = Settings(tuple(scopes.split()), 0.05, draw(st.integers(0, 1)))
    kinds = st.sampled_from((torch.float32, torch.float32, torch.float64, *DTYPES))
    parameters = Parameters(
        *(torch.randn(len(setup.scopes)).to(draw(kinds)) for _ in range(2)),
        *(torch.randn(c).to(draw(kinds)) if draw(st.booleans()) else None for _ in range(2)),
    )
    if math.prod(size) == 1 and scopes.startswith('in'):
        masked = map(mask_instance, parameters[:2])
        parameters = Parameters(*masked, *parameters[2:])
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
    by_definition = reference.backward_sums(
        dy, x, kept, *parameters[:3], setup.scopes, setup.eps, fixed is None
    )
    for actual, target in zip(sums, by_definition):
        assert (actual is None) == (target is None)
        if actual is not None:
            assert actual.dtype == torch.float32 and actual.shape == target.shape
            close(actual, target)


# ---- numbers that are hard ----


def both_formats(*shape: int) -> list[Tensor]:
    x = torch.randn(*shape)
    return [x, x.contiguous(memory_format=FORMATS[len(shape)])]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('value', [0.0, 0.1, -3e4])
def test_a_constant_input_has_variance_zero(value, dtype):
    for x in both_formats(3, 70, 67, 67):
        x = x.fill_(value).to(dtype)
        moments = cpu.measure(x, ALL, None, True)
        for mean, var in (k.unbind() for k in moments.values()):
            assert (mean == x[0, 0, 0, 0].float()).all() and (var == 0).all()


@pytest.mark.parametrize('offset', [0.0, 1e4, 1e6])
def test_far_from_zero_no_worse_than_batch_norm(offset):
    """With all weight on bn, and the three scopes mixed."""
    parameters = Parameters(torch.tensor([-50.0, -50.0, 50.0]), torch.tensor([-50.0, -50.0, 50.0]),
                            torch.rand(70) + 0.5, torch.randn(70))  # fmt: skip
    for x in both_formats(2, 70, 64, 65):
        x += offset
        dy = torch.randn_like(x)
        step, _ = backend_step(x, dy, parameters, ALL)
        expected = judge(x, dy, parameters, ALL)
        leaf = x.clone().requires_grad_()
        y = torch.nn.functional.batch_norm(
            leaf, None, None, parameters.weight, parameters.bias, True
        )
        y.backward(dy)
        for actual, theirs, target in ((step.y, y, expected.y), (step.dx, leaf.grad, expected.dx)):
            error, their_error = ((k.double() - target).abs().max() for k in (actual, theirs))
            assert error <= 1.2 * their_error + 2e-6

        mixed = Parameters(torch.zeros(3), torch.zeros(3), None, None)
        step, _ = backend_step(x, dy, mixed, ALL)
        expected = judge(x, dy, mixed, ALL)
        # float32 holds the mean to half a unit in its last place.
        place = torch.finfo(torch.float32).eps * offset
        close(step.y, expected.y, 2e-6 + place)
        for scope, moments in step.moments.items():
            close(moments[1], expected.moments[scope][1], 1e-6 + place)


def test_a_first_value_far_from_the_others_costs_no_digits():
    """Sums run about it, so the mean is exact to the standard deviation's digits."""
    for x in both_formats(2, 70, 64, 65):
        x[:, :, 0, 0] = 3e3
        for scope, (mean, var) in cpu.measure(x, ALL, None, True).items():
            expected, expected_var = judge_moments(x, ALL)[scope]
            assert ((mean - expected).abs() < 1e-5 * expected_var.sqrt()).all()
            torch.testing.assert_close(var.double(), expected_var, rtol=1e-6, atol=0)


def test_means_near_the_end_of_float32_are_finite():
    """Their sums are not, in float32."""
    for x in both_formats(2, 70, 64, 65):
        x = (x.abs() + 1) * 1e36
        x[:, :, 0, 0] = 0
        for mean, _ in (k.unbind() for k in cpu.measure(x, ALL, None, True).values()):
            assert mean.isfinite().all()
        expected = judge_moments(x, ALL)['bn'][0]
        torch.testing.assert_close(
            cpu.measure(x, ALL, None, True)['bn'][0].double(), expected, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('where', [(0, 0), (13, 7)], ids=['first', 'inside'])
@pytest.mark.parametrize('scopes', ['in', 'ln', 'bn', 'in ln', 'in ln bn'])
def test_nan_and_inf_spread_as_by_the_formulas(scopes, where, bad):
    setup = Settings(tuple(scopes.split()), 1e-5, 0)
    size = len(setup.scopes)
    parameters = Parameters(torch.randn(size), torch.randn(size), torch.randn(35), None)
    for dtype in DTYPES:
        for x in both_formats(3, 35, 17, 19):
            x[(1, 20, *where)] = bad
            x = x.to(dtype)
            dy = torch.randn_like(x)
            step, _ = backend_step(x, dy, parameters, setup)
            expected = judge(x, dy, parameters, setup)
            pairs = [(step.y, expected.y), (step.dx, expected.dx)]
            pairs += [(step.moments[k], expected.moments[k]) for k in step.moments]
            pairs += zip(step.gradients[:3], expected.gradients[:3])
            for actual, target in pairs:
                fine = target.isfinite()
                assert torch.equal(actual.isfinite(), fine)
                if fine.any():
                    close(actual[fine], target[fine], 1e-4)


# ---- running statistics ----


def moved(x: Tensor, setup: Settings, share: float, mean: Tensor, var: Tensor) -> list[Tensor]:
    logits = torch.zeros(2, len(setup.scopes))
    return reference.switch_norm(
        [x], *logits, running_mean=mean, running_var=var, momentum=share,
        normalizers=setup.scopes, correction=setup.correction,
    )[1:]  # fmt: skip


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, *DTYPES[1:]], ids=str)
@pytest.mark.parametrize('correction', [0, 1])
@pytest.mark.parametrize('momentum', [0.1, None])
def test_running_statistics_move_as_batch_norms(momentum, correction, dtype):
    setup = ALL._replace(correction=correction)
    mean, var = torch.randn(5).to(dtype), torch.rand(5).to(dtype)
    running = Running(mean, var, torch.tensor(3), momentum)
    for batch in range(2):
        x = torch.randn(4, 5, 3, 3)
        share = 1 / (4 + batch) if momentum is None else momentum
        expected = moved(x, setup, share, mean, var)
        cpu.measure(x, setup, running, True)
        for actual, target in zip((mean, var), expected):
            close(actual, target, 1e-6)
    assert running.batches == 5


def test_running_statistics_stay_where_they_are_not_to_move():
    x, mean, var = torch.randn(2, 3, 4), torch.randn(3), torch.rand(3)
    running = Running(mean.clone(), var.clone(), torch.tensor(3), 0.1)
    cpu.measure(x, ALL, running, training=False)
    cpu.measure(x, ALL._replace(scopes=('in', 'ln')), running, training=True)
    assert torch.equal(running.mean, mean) and torch.equal(running.var, var)
    assert running.batches == 3


def test_given_statistics_are_copied():
    running = Running(torch.zeros(3), torch.ones(3), None, 0.1)
    for scopes in (('bn',), ('in', 'bn')):
        setup = ALL._replace(scopes=scopes)
        moments = cpu.measure(torch.randn(2, 3, 4), setup, running, training=False)
        running.mean.fill_(7)
        assert not moments['bn'][0].any()
        running.mean.zero_()


def test_half_precision_statistics_survive_a_variance_that_they_cannot_hold():
    running = Running(torch.zeros(1).half(), torch.ones(1).half(), None, 0.1)
    cpu.measure(torch.tensor([[-300.0], [300.0]]), ALL._replace(scopes=('ln', 'bn')), running, True)
    assert running.var == torch.tensor(0.9 + 0.1 * 180000).half()


def test_a_batch_of_one_position_has_no_unbiased_variance():
    running = Running(torch.zeros(2), torch.ones(2), None, 0.5)
    cpu.measure(torch.tensor([[2.0, 4.0]]), ALL._replace(scopes=('ln', 'bn')), running, True)
    assert running.mean.tolist() == [1, 2] and running.var.tolist() == [0.5, 0.5]


# ---- ranks ----


@pytest.mark.parametrize('correction', [0, 1])
def test_ranks_unite_to_the_moments_of_all_their_positions(correction):
    setup = ALL._replace(correction=0)
    shares = [torch.randn(2, 3, 4, 5) + 1e3, torch.randn(1, 3, 7, 2) + 1e3]
    everything = torch.cat([x.transpose(0, 1).flatten(1) for x in shares], 1)[None]
    totals = cpu.contribute(torch.zeros(2, 1, 3), 0)
    for x in shares:
        totals += cpu.contribute(cpu.measure(x, setup, None, True)['bn'], x.numel() // 3)
    assert totals.shape == (7,) and totals.dtype == torch.float64

    running = Running(torch.randn(3), torch.rand(3), torch.tensor(0), 0.25)
    setup = ALL._replace(correction=correction)
    unbiased = everything.shape[2] / (everything.shape[2] - (0 if correction else 1))
    batch = judge_moments(everything, ALL)['bn']
    expected = [
        0.75 * old.double() + 0.25 * new
        for old, new in zip(running[:2], (batch[0, 0], batch[1, 0] * unbiased))
    ]
    united = cpu.unite(totals, torch.float32, setup, running)
    assert united.dtype == torch.float32 and united.shape == (2, 1, 3)
    # Each rank's mean went through float32.
    torch.testing.assert_close(united[0].double(), batch[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(united[1].double(), batch[1], rtol=1e-3, atol=0)
    for actual, target in zip(running[:2], expected):
        torch.testing.assert_close(actual.double(), target, rtol=1e-3, atol=0)
    assert running.batches == 1


def test_ranks_without_positions_unite_to_zero_and_move_nothing():
    running = Running(torch.ones(3), torch.ones(3), torch.tensor(2), None)
    united = cpu.unite(torch.zeros(7, dtype=torch.float64), torch.float32, ALL, running)
    assert united.shape == (2, 1, 3) and not united.any()
    assert running.batches == 2 and running.mean.tolist() == running.var.tolist() == [1, 1, 1]


def test_propagate_takes_the_sums_and_the_positions_of_all_ranks():
    """Two ranks, by hand, give the dx of one process with the union of their batches."""
    parameters = Parameters(torch.randn(3), torch.randn(3), torch.randn(6), None)
    x, dy = torch.randn(2, 4, 6, 3, 3)
    parts = [slice(0, 1), slice(1, 4)]
    whole = cpu.measure(x, ALL, None, True)
    sums, moments = [], []
    for part in parts:
        moments.append({**cpu.measure(x[part], ALL, None, True), 'bn': whole['bn']})
        reduced = cpu.reduce(dy[part], x[part], moments[-1], parameters, ALL, True)
        sums.append(reduced[0])
    batch = sums[0].batch + sums[1].batch
    total = torch.tensor(36.0, dtype=torch.float64)
    dx = [
        cpu.propagate(dy[p], x[p], m, s._replace(batch=batch), parameters, ALL, total)
        for p, m, s in zip(parts, moments, sums)
    ]
    close(torch.cat(dx), judge(x, dy, parameters, ALL).dx)


# ---- threads ----


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('shape', [(2, 96, 40, 40), (70, 130, 5, 5), (1, 20, 90, 70)])
def test_repeated_passes_agree_to_the_last_bit(shape, layout, threads):
    """For each number of threads; the numbers agree nearly among each other."""
    x, dy = (torch.randn(shape).contiguous(memory_format=layout) for _ in range(2))
    parameters = Parameters(*torch.randn(2, 3), *torch.randn(2, shape[1]))

    def flat(step: Step) -> list[Tensor]:
        return [*step.moments.values(), step.y, step.dx, *step.gradients]

    one, _ = backend_step(x, dy, parameters, ALL)
    for count in (1, 2, 3):
        threads(count)
        first, _ = backend_step(x, dy, parameters, ALL)
        for _ in range(3):
            again, _ = backend_step(x, dy, parameters, ALL)
            assert all(map(torch.equal, flat(first), flat(again)))
        for actual, target in zip(flat(first), flat(one)):
            torch.testing.assert_close(actual, target, rtol=1e-5, atol=2e-4)


def test_results_are_new_tensors():
    x = torch.randn(2, 3, 4)
    parameters = Parameters(*torch.randn(2, 3), None, None)
    kept = x.clone()
    step, _ = backend_step(x, x, parameters, ALL)
    assert torch.equal(x, kept)
    assert len({t.data_ptr() for t in (x, step.y, step.dx)}) == 3
    assert not step.y._is_view() and not step.dx._is_view()


def test_a_tensor_without_memory_is_refused():
    """Not taken for one that is left out: its address is 0 too."""
    parameters = Parameters(*torch.randn(2, 3), torch.ones(3, device='meta'), None)
    x = torch.randn(2, 3, 4)
    with pytest.raises(TypeError, match='without memory'):
        cpu.normalize(x, cpu.measure(x, ALL, None, True), parameters, ALL)
