"""The choice of a backend, the layout of its input, and the reference on every device."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import Tensor, nn

from sn_mm import SwitchNorm2d
from sn_mm.equations import stats_dtype
from sn_mm.ops import aten, backend_for, dense, dispatch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

# --- The reference ---------------------------------------------------------------------------


def as_cuda_writes(x, weight, bias, mean, var, training, momentum, eps, out):
    """``native_batch_norm`` in CUDA's order: it saves the mean, then the inverse deviation, then
    normalizes with these two."""
    y, save_mean, save_invstd = out
    channels = (1, -1) + (1,) * (x.dim() - 2)
    for saved, value in ((save_mean, mean), (save_invstd, (var + eps).rsqrt())):
        saved.resize_(value.shape).copy_(value)
    normalized = (x - save_mean.view(channels)) * save_invstd.view(channels)
    y.copy_(normalized * weight.view(channels) + bias.view(channels))
    return out


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_the_reference_borrows_no_kernel_that_cuda_runs_otherwise(monkeypatch, dtype):
    monkeypatch.setattr(torch, 'native_batch_norm', as_cuda_writes)
    monkeypatch.setattr(dispatch, '_FORCED', 'aten')
    x = torch.randn(2, 3, 5, 4, dtype=dtype, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    layer = SwitchNorm2d(3, dtype=dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(0.5, 2)
    y, judge = layer(x), reference.switch_norm([wide], **dict(layer.named_parameters())).outputs[0]
    dy = torch.randn_like(y)
    y.backward(dy)
    judge.backward(dy.double())
    torch.testing.assert_close(y.double(), judge, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_meta_tensors_have_shapes_and_gradients(training):
    """Training and evaluation on a device that has neither data nor BatchNorm's kernels."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), SwitchNorm2d(4)).to('meta').train(training)
    x = torch.empty(2, 3, 8, 8, device='meta', requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.shape == (2, 4, 6, 6) and y.device.type == 'meta' and x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_fake_tensors_have_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    layer = SwitchNorm2d(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = layer(torch.empty(2, 4, 8, 8, requires_grad=True))
        y.sum().backward()
    assert y.shape == (2, 4, 8, 8) and layer.num_batches_tracked == 0


def test_tensor_subclasses_take_the_reference():
    class Named(Tensor):
        pass

    assert dispatch.backend_for(torch.ones(2, 3, 4).as_subclass(Named)) is aten


# --- The choice ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('dtype', 'shape'), [(torch.float64, (2, 3, 4)), (torch.float32, (0, 3, 4))], ids=str
)
def test_float64_and_empty_input_take_the_reference(dtype, shape):
    assert backend_for(torch.empty(shape, dtype=dtype)) is aten


@pytest.mark.skipif(
    not hasattr(torch.compiler, '_is_compiling_flag'), reason='torch < 2.4 keeps it elsewhere'
)
def test_an_eager_layer_works_while_another_thread_compiles(monkeypatch):
    """``torch.compiler.is_compiling()`` is then true in every thread."""
    monkeypatch.setattr(torch.compiler, '_is_compiling_flag', True)
    assert torch.compiler.is_compiling()
    layer = SwitchNorm2d(3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    y.sum().backward()
    expected = reference.switch_norm([x.detach()], torch.ones(3), torch.ones(3)).outputs[0]
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert layer.num_batches_tracked == 1


# --- Memory formats --------------------------------------------------------------------------


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
def test_dense_input_is_not_copied(x):
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
def test_other_input_becomes_contiguous(x):
    assert dense(x).is_contiguous() and torch.equal(dense(x), x)


def test_gradients_take_the_format_of_the_input():
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    plain = torch.randn(2, 3, 4, 5)
    assert dense(plain, like=last).is_contiguous(memory_format=torch.channels_last)
    assert dense(last, like=plain).is_contiguous()
    assert torch.equal(dense(plain, like=last), plain)


def test_statistics_are_never_in_half_precision():
    assert [stats_dtype(d) for d in DTYPES] == [torch.float64] + [torch.float32] * 3
