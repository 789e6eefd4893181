"""The batch average is the plain average of batch statistics, and measuring it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sn_mm import SwitchNorm2d
from sn_mm.errors import InputError
from sn_mm.model.batch_average import measure_batch_average, set_statistics

BATCHES = 5


class Network(nn.Module):
    """SN after SN, dropout and BatchNorm, a frozen stage and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = SwitchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm1 = SwitchNorm2d(4, momentum=0.3)
        self.dropout = nn.Dropout(0.5)
        self.bn = nn.BatchNorm2d(4)
        self.norm2 = SwitchNorm2d(4)
        self.unused = SwitchNorm2d(4)
        self.untracked = SwitchNorm2d(4, track_running_stats=False)
        self.seen: list[Tensor] = []
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.mean_weight)
            nn.init.normal_(norm.var_weight)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        x = self.conv(self.frozen(x))
        x = self.norm2(self.bn(self.dropout(self.norm1(x).relu())))
        return self.untracked(x)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 7, 6, generator=generator) * 2 + 1 for n in range(1, BATCHES + 1)]


def forward(model: nn.Module, batch: Tensor) -> None:
    model(batch)


def test_it_is_the_mean_of_each_mini_batchs_mean_and_unbiased_variance() -> None:
    model = Network()
    inputs = [model.conv(model.frozen.eval()(x)) for x in batches()]
    measured = measure_batch_average(model, batches(), forward)
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs])
    torch.testing.assert_close(measured['norm1.running_mean'], means.mean(0))
    torch.testing.assert_close(measured['norm1.running_var'], variances.mean(0))


def test_later_layers_see_what_training_would_show_them() -> None:
    """Training with nothing to learn and a cumulative average is the same thing."""
    model = Network()
    trained = copy.deepcopy(model).train()
    for norm in (trained.norm1, trained.norm2):
        norm.momentum = None
    torch.manual_seed(3)
    for batch in batches():
        trained(batch)
    torch.manual_seed(3)
    measured = measure_batch_average(model.eval(), batches(), forward)
    for name in ('norm1', 'norm2'):
        for buffer in ('running_mean', 'running_var'):
            expected = trained.get_buffer(f'{name}.{buffer}')
            torch.testing.assert_close(measured[f'{name}.{buffer}'], expected)


def test_statistics_are_batchnorms() -> None:
    sn = nn.Sequential(SwitchNorm2d(3))
    bn = nn.Sequential(nn.BatchNorm2d(3))
    expected = measure_batch_average(bn, batches(), forward, bn=True)
    torch.testing.assert_close(measure_batch_average(sn, batches(), forward), expected)


@pytest.mark.parametrize('bn', [False, True])
def test_layers_that_train_and_run_are_measured(bn: bool) -> None:
    measured = measure_batch_average(Network(), batches(), forward, bn=bn)
    names = ['norm1', *['bn'] * bn, 'norm2']
    keys = [f'{name}.{buffer}' for name in names for buffer in ('running_mean', 'running_var')]
    assert list(measured) == keys


@pytest.mark.parametrize('mode', [True, False])
def test_the_model_does_not_change_in_any_way(mode: bool) -> None:
    model = Network().train(mode)
    model.conv.weight.requires_grad_(False)
    model(batches()[0]).sum().backward()
    state = copy.deepcopy(model.state_dict())
    grads = {name: (p, p.grad, p.requires_grad) for name, p in model.named_parameters()}
    copies = {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }
    modes = [m.training for m in model.modules()]
    momenta = [getattr(m, 'momentum', None) for m in model.modules()]
    model.seen.clear()

    measure_batch_average(model, batches(), forward, bn=True)

    assert model.seen == []
    assert modes == [m.training for m in model.modules()]
    assert momenta == [getattr(m, 'momentum', None) for m in model.modules()]
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    for name, p in model.named_parameters():
        same, grad, requires_grad = grads[name]
        assert p is same and p.grad is grad and p.requires_grad == requires_grad
        assert grad is None or torch.equal(grad, copies[name])


def test_statistics_go_into_their_buffers_alone() -> None:
    model = Network()
    before = copy.deepcopy(model.state_dict())
    measured = measure_batch_average(model, batches(), forward)
    set_statistics(model, measured)
    for key, value in model.state_dict().items():
        assert torch.equal(value, measured.get(key, before[key])), key
    assert not torch.equal(before['norm1.running_mean'], model.norm1.running_mean)


def test_double_precision_stays() -> None:
    model = nn.Sequential(SwitchNorm2d(3)).double()
    measured = measure_batch_average(model, [x.double() for x in batches()], forward)
    expected = torch.stack([x.double().mean((0, 2, 3)) for x in batches()]).mean(0)
    torch.testing.assert_close(measured['0.running_mean'], expected, rtol=1e-12, atol=1e-12)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(InputError, match='^no SN layer of the model trains'):
        measure_batch_average(nn.Sequential(nn.BatchNorm2d(3)), batches(), forward)


def test_a_forward_that_runs_the_model_itself_is_refused_and_undone() -> None:
    model = nn.Sequential(SwitchNorm2d(3), nn.BatchNorm2d(3))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match='forward must run the network that it is given'):
        measure_batch_average(model, batches(), lambda _, batch: model(batch))
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
