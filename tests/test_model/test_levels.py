"""Norms of one head for all levels of a feature pyramid: without the batch scope, or warned of."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm2d, convert_switch_norm


class Head(nn.Module):
    """One tower for all levels, and a norm of the first one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.first = nn.BatchNorm2d(4)

    def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.tower(self.first(levels[0])), *(self.tower(level) for level in levels[1:])]


def levels(*sizes: int) -> list[torch.Tensor]:
    return [torch.randn(2, 4, size, size) for size in sizes]


def train(model: nn.Module, inputs: list[torch.Tensor]) -> None:
    torch.stack([output.sum() for output in model(inputs)]).sum().backward()


def caught(model: nn.Module, *batches: list[torch.Tensor]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        for inputs in batches:
            train(model, inputs)
    return [str(warning.message) for warning in found]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_example_inputs_show_which_layers_serve_several_sizes():
    lines: list[str] = []
    head = Head().train()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    convert_switch_norm(head, inputs=(levels(8, 4, 2),), report=lines.append)
    assert head.tower[1].normalizers == ('in', 'ln')
    assert head.first.normalizers == ('in', 'ln', 'bn')
    assert "tower.1: BatchNorm2d -> SwitchNorm2d ['in', 'ln'], as it meets 3 sizes" in lines
    assert all(module.training for module in head.modules())
    assert torch.equal(head.first.running_mean, before['first.running_mean'])
    assert hooks(head) == 0 and not caught(head, levels(8, 4, 2))


def test_normalizers_that_are_given_stay():
    head = convert_switch_norm(Head(), inputs=(levels(8, 4),), normalizers=('bn',))
    assert head.tower[1].normalizers == ('bn',)


def test_a_head_of_torchvision_evaluates_as_it_trains():
    retinanet = pytest.importorskip('torchvision.models.detection.retinanet')
    group_norm = retinanet.partial(nn.GroupNorm, 2)
    head = retinanet.RetinaNetHead(8, 3, 2, norm_layer=group_norm)
    inputs = [torch.randn(2, 8, s, s) * s + s for s in (16, 8, 4)]
    with pytest.warns(UserWarning, match='met sizes'):
        convert_switch_norm(copy.deepcopy(head)).train()(inputs)['cls_logits'].sum().backward()
    convert_switch_norm(head, inputs=(inputs,))
    with torch.no_grad():
        outputs = [head.train(mode)(inputs) for mode in (True, False)]
    for name, want in outputs[0].items():
        torch.testing.assert_close(outputs[1][name], want)


def test_without_inputs_one_warning_comes_from_the_first_pass():
    head = convert_switch_norm(nn.ModuleList([Head(), Head()]))[0]
    (line,) = caught(head, levels(8, 4, 2))
    assert "'0.tower.1' met sizes (8, 8) and (4, 4) before a backward pass" in line
    assert 'convert_switch_norm(model, inputs=...)' in line
    assert hooks(head) == 0


@pytest.mark.parametrize('second', [8, 4], ids=['one size', 'another size in the next step'])
def test_one_size_for_each_backward_pass_is_no_reason_to_warn(second):
    head = convert_switch_norm(Head())
    assert hooks(head) == 2
    assert caught(head, levels(8), levels(second)) == []
    assert hooks(head) == 0


def test_evaluation_and_passes_without_gradients_do_not_count():
    head = convert_switch_norm(Head())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        head.eval()(levels(8, 4))
        with torch.no_grad():
            head.train()(levels(8, 4))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_copies_warn_and_end_by_themselves(copied):
    head = convert_switch_norm(Head())
    twin = copied(head)
    assert len(caught(twin, levels(8, 4))) == 1
    assert hooks(twin) == 0 and hooks(head) == 2


def test_torchscript_takes_a_model_that_was_just_converted():
    model = convert_switch_norm(nn.Sequential(nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_torch_compile_takes_a_model_that_was_just_converted(fresh_compiler):
    head = convert_switch_norm(Head())
    twin = copy.deepcopy(head)
    compiled = torch.compile(head, backend='eager', fullgraph=True)
    inputs = levels(8, 4)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        want = twin(inputs)
    for output, expected in zip(compiled(inputs), want):
        torch.testing.assert_close(output, expected)


def test_a_layer_without_the_batch_scope_is_not_observed():
    model = convert_switch_norm(nn.Sequential(nn.BatchNorm2d(4)), normalizers=('in', 'ln'))
    assert type(model[0]) is SwitchNorm2d and hooks(model) == 0
