"""SN through the inputs with which torch tests its own BatchNorm modules.

Every check runs on BatchNorm too: a case that torch refuses to BatchNorm shows nothing, and is
skipped.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import sn_mm

pytest.importorskip('expecttest', reason='torch needs expecttest for its own module inputs')
# Its import would forbid the whole process to set the flags of torch.backends, as other tests do.
with mock.patch('torch.backends.disable_global_flags'):
    common_modules = pytest.importorskip('torch.testing._internal.common_modules')

KINDS = {
    'nn.BatchNorm1d': (sn_mm.SwitchNorm1d, nn.BatchNorm1d),
    'nn.BatchNorm2d': (sn_mm.SwitchNorm2d, nn.BatchNorm2d),
    'nn.BatchNorm3d': (sn_mm.SwitchNorm3d, nn.BatchNorm3d),
}
REFUSALS = ('on meta tensors', 'in-place operation', 'running_mean')
"""Words of the errors with which torch refuses cases to BatchNorm."""


class Case(NamedTuple):
    name: str
    training: bool
    given: Any

    def __str__(self) -> str:
        mode = 'train' if self.training else 'eval'
        return f'{self.name[3:]}-{self.given.desc or "plain"}-{mode}'

    def make(self, kind: type[nn.Module], **more: Any) -> Any:
        args = self.given.constructor_input
        layer = kind(*args.args, **{'dtype': torch.float64, **args.kwargs, **more})
        if layer.train(self.training).num_features and more.get('device') != 'meta':
            randomise(layer)
        return layer

    def x(self) -> Tensor:
        return self.given.forward_input.args[0].detach().clone().requires_grad_()


def randomise(layer: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(1, 0.3)


def _cases() -> list[Case]:
    cases = []
    for info in common_modules.module_db:
        for training in (True, False) if info.name in KINDS else ():
            inputs = info.module_inputs_func(
                info, device='cpu', dtype=torch.float64, requires_grad=True, training=training
            )
            cases += [Case(info.name, training, given) for given in inputs]
    return cases


@pytest.fixture(params=_cases(), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def both(case: Case, check: Callable[[Case, type[nn.Module]], None]) -> None:
    ours, theirs = KINDS[case.name]
    try:
        check(case, theirs)
    except RuntimeError as error:
        if not any(words in str(error) for words in REFUSALS):
            raise
        pytest.skip(f'BatchNorm fails too: {error!r}')
    check(case, ours)


def as_function(layer: nn.Module) -> Callable[..., Tensor]:
    names = [name for name, _ in layer.named_parameters()]
    return lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x,))


def inputs_of(case: Case, layer: nn.Module) -> list[Tensor]:
    return [case.x(), *(p.detach().clone().requires_grad_() for p in layer.parameters())]


def still(layer: nn.Module) -> nn.Module:
    """Without running statistics that move, which numerical derivatives cannot follow."""
    if layer.running_mean is not None:
        layer.momentum = 0.0
    return layer


def test_there_are_cases():
    assert len(_cases()) >= 36


def test_forward_and_backward(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        x = case.x()
        layer = case.make(kind)
        y = layer(x)
        assert y.shape == x.shape and y.dtype == x.dtype
        y.sum().backward()
        assert x.grad.shape == x.shape
        assert all(p.grad.shape == p.shape for p in layer.parameters())

    both(case, check)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_factory_arguments_reach_all_tensors(case, dtype):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = case.make(kind, device='meta', dtype=dtype)
        for t in layer.state_dict().values():
            assert t.device.type == 'meta' and t.dtype in (dtype, torch.int64)

    both(case, check)


@pytest.mark.parametrize('how', ['pickle', 'deepcopy', 'torch.save', 'state dict'])
def test_copies_give_the_same(case, how):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = case.make(kind)
        if how == 'pickle':
            twin = pickle.loads(pickle.dumps(layer))
        elif how == 'deepcopy':
            twin = copy.deepcopy(layer)
        elif how == 'torch.save':
            torch.save(layer, file := io.BytesIO())
            twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        else:
            twin = case.make(kind)
            twin.load_state_dict(layer.state_dict())
        assert torch.equal(twin(case.x()), layer(case.x()))
        assert repr(twin) == repr(layer)
        for name, t in layer.state_dict().items():
            assert torch.equal(twin.state_dict()[name], t)

    both(case, check)


def test_input_of_any_strides(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        x = case.x()
        strided = x.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
        ones, twos = case.make(kind)(x), case.make(kind)(strided)
        torch.testing.assert_close(twos, ones)
        dy = torch.randn_like(ones)
        ones.backward(dy)
        twos.backward(dy.repeat_interleave(2, -1)[..., ::2])
        torch.testing.assert_close(strided.grad, x.grad)

    both(case, check)


def test_first_derivatives(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = still(case.make(kind))
        assert torch.autograd.gradcheck(as_function(layer), inputs_of(case, layer), fast_mode=True)

    both(case, check)


def test_second_derivatives(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = still(case.make(kind))
        assert torch.autograd.gradgradcheck(
            as_function(layer), inputs_of(case, layer), fast_mode=True
        )

    both(case, check)


def test_meta_to_empty_and_skip_init(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = case.make(kind, device='meta')
        assert layer(case.x().to('meta')).device.type == 'meta'
        full = layer.to_empty(device='cpu')
        full.reset_parameters()
        assert torch.equal(full.train()(case.x()), kind_as_new(case, kind).train()(case.x()))
        args = case.given.constructor_input
        skipped = nn.utils.skip_init(kind, *args.args, **{'dtype': torch.float64, **args.kwargs})
        assert all(p.device.type == 'cpu' for p in skipped.parameters())

    both(case, check)


def kind_as_new(case: Case, kind: type[nn.Module]) -> nn.Module:
    args = case.given.constructor_input
    return kind(*args.args, **{'dtype': torch.float64, **args.kwargs})


def test_vmap(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = case.make(kind)
        x = torch.stack([case.x(), case.x() * 2]).detach()
        found = torch.func.vmap(layer)(x)
        torch.testing.assert_close(found, torch.stack([layer(b) for b in x]))

    both(case, check)


def test_jvp(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = still(case.make(kind))
        x = case.x().detach()
        state = {k: t.clone() for k, t in layer.state_dict().items()}

        def f(x: Tensor, state: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(layer, state, (x,))

        zeros = {k: torch.zeros_like(t) for k, t in state.items() if t.is_floating_point()}
        fixed = {k: t for k, t in state.items() if k not in zeros}
        floats = {k: t for k, t in state.items() if k in zeros}
        tangent = torch.randn_like(x)
        y, dy = torch.func.jvp(
            lambda x, floats: f(x, {**floats, **fixed}), (x, floats), (tangent, zeros)
        )
        step = 1e-6
        numeric = (layer(x + step * tangent) - layer(x - step * tangent)) / (2 * step)
        torch.testing.assert_close(dy, numeric.detach(), rtol=1e-4, atol=1e-6)

    both(case, check)


def test_functional_call(case):
    def check(case: Case, kind: type[nn.Module]) -> None:
        layer = case.make(kind)
        state = {k: t.clone() for k, t in case.make(kind).state_dict().items()}
        with torch.no_grad():
            for t in layer.parameters():
                t.zero_()
        found = torch.func.functional_call(layer, state, (case.x(),))
        torch.testing.assert_close(found, case.make(kind)(case.x()))

    both(case, check)
