"""torch.compile takes a model with SN whole and gives the numbers of the eager one."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch.utils.checkpoint import checkpoint

from sn_mm import SwitchNorm1d, SwitchNorm2d
from sn_mm._compat import look_at

# Before torch 2.4 the graph breaks at each layer: the numbers are the same.
WHOLE = hasattr(torch.library, 'register_fake')


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def net(**layer_args) -> nn.Module:
    norm = SwitchNorm2d(8, **layer_args)
    with torch.no_grad():
        for p in norm.parameters():
            p.uniform_(0.5, 1.5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), SwitchNorm2d(4)
    )


def assert_steps_agree(eager: nn.Module, compiled_copy: nn.Module, inputs: list[Tensor], **options):
    """Two steps each: outputs, all gradients and the running statistics."""
    compiled = torch.compile(compiled_copy, fullgraph=WHOLE, **options)
    for x in inputs:
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = eager(ours), compiled(theirs)
        torch.testing.assert_close(z, y)
        assert z.stride() == y.stride()
        dy = torch.randn_like(y)
        y.backward(dy)
        z.backward(dy)
        torch.testing.assert_close(theirs.grad, ours.grad)
    for (name, p), q in zip(eager.named_parameters(), compiled_copy.parameters()):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-4, msg=name)
    for (name, b), c in zip(eager.named_buffers(), compiled_copy.named_buffers()):
        torch.testing.assert_close(c[1], b, msg=name)


CASES = {
    'all three': {},
    'in and ln': {'normalizers': ('in', 'ln')},
    'bn alone': {'normalizers': 'bn'},
    'without affine': {'affine': False},
    'cumulative average': {'momentum': None},
    'without running statistics': {'track_running_stats': False},
    'correction': {'correction': 1},
}


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('case', CASES)
def test_one_graph_gives_the_numbers_of_the_eager_layer(case, training):
    model = net(**CASES[case]).train(training)
    inputs = [torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)]
    assert_steps_agree(model, copy.deepcopy(model), inputs, backend='aot_eager')


def test_one_graph_keeps_channels_last_and_float64():
    model = net().double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert_steps_agree(model, copy.deepcopy(model), [x], backend='aot_eager')


def test_one_graph_for_vectors_and_for_one_position_per_map():
    model = nn.Sequential(nn.Linear(3, 6), SwitchNorm1d(6))
    assert_steps_agree(model, copy.deepcopy(model), [torch.randn(4, 3)], backend='aot_eager')
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), net()[1])
    assert_steps_agree(model, copy.deepcopy(model), [torch.randn(4, 8, 5, 5)], backend='aot_eager')


def test_one_graph_for_changing_sizes():
    model = net()
    inputs = [torch.randn(2, 3, 9, 8), torch.randn(3, 3, 12, 7), torch.randn(1, 3, 8, 15)]
    assert_steps_agree(model, copy.deepcopy(model), inputs, backend='aot_eager', dynamic=True)


def test_compiling_a_frozen_layer_gives_no_gradients():
    model = net()
    model[1].requires_grad_(False)
    compiled = torch.compile(model, fullgraph=WHOLE, backend='aot_eager')
    compiled(torch.randn(2, 3, 9, 8)).sum().backward()
    assert all(p.grad is None for p in model[1].parameters())
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.skipif(not WHOLE, reason='before torch 2.4 the graph breaks at each layer')
def test_only_what_sums_over_the_input_stays_an_operator():
    graphs: dict[str, set[str]] = {}

    def recorded(name: str) -> Callable:
        def compile_graph(graph: torch.fx.GraphModule, _) -> Callable:
            graphs[name] = {str(n.target) for n in graph.graph.nodes if 'sn_mm' in str(n.target)}
            return make_boxed_func(graph.forward)

        return compile_graph

    compilers = {'fw_compiler': recorded('forward'), 'bw_compiler': recorded('backward')}
    model = torch.compile(net(), fullgraph=True, backend=aot_autograd(**compilers))
    model(torch.randn(2, 3, 9, 8)).sum().backward()
    assert graphs['forward'] == {'sn_mm.measure.default'}
    assert graphs['backward'] == {'sn_mm.reduce.default', 'sn_mm.propagate.default'}
    alone, x = SwitchNorm2d(3, normalizers='bn').eval(), torch.randn(2, 3, 9, 8)
    y = torch.compile(alone, fullgraph=True, backend=aot_autograd(**compilers))(x)
    assert graphs['forward'] == set()
    torch.testing.assert_close(y, alone(x))


def test_one_graph_with_autocast_and_activation_checkpointing_inside():
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast('cpu', dtype=torch.bfloat16):
                return checkpoint(self.body, x, use_reentrant=False)

    model = Checkpointed()
    x = torch.randn(2, 3, 9, 8)
    assert_steps_agree(model, copy.deepcopy(model), [x], backend='aot_eager')


class Block(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 4, 1, bias=False), norm(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 8, 3, padding=1, bias=False), norm(8),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + x)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not WHOLE, reason='before torch 2.4 the graph breaks at each layer')
def test_inductor_makes_no_more_kernels_of_a_block_than_with_batch_norm():
    """And gives the numbers of the eager one. It lays the activations out as channels_last."""
    made = {}
    for norm in (nn.BatchNorm2d, SwitchNorm2d):
        torch._dynamo.reset()
        metrics.reset()
        model, x = Block(norm), torch.randn(2, 8, 12, 10)
        with inductor_config.patch(force_disable_caches=True):  # a cached graph is not counted
            assert_steps_agree(model, copy.deepcopy(model), [x])
        made[norm] = metrics.generated_kernel_count
    assert 0 < made[SwitchNorm2d] <= made[nn.BatchNorm2d]


@pytest.mark.skipif(not WHOLE, reason='torch < 2.4 has no operators with fakes')
@pytest.mark.parametrize('scopes', [['in', 'ln', 'bn'], ['bn'], ['in', 'ln']], ids='+'.join)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'padded'])
def test_the_operators_keep_what_pytorch_asks_of_them(layout, scopes):
    """No input is written to, no output is a view of one, shapes and strides are as foretold."""
    ops = torch.ops.sn_mm
    x = torch.randn(2, 8, 4, 5)
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    elif layout == 'padded':  # as Inductor may lay out what comes before
        x = nn.functional.pad(x, (0, 3))[..., :5]
    moments = ops.measure(x, None, None, scopes, 0)
    logits = torch.ones(2, len(scopes)).unbind()
    layer = *logits, torch.ones(8), None, scopes, 1e-5, 0
    sums = ops.reduce(x, x, *moments, *layer, True)[:3]
    for operator, args in {
        ops.measure: (x, None, None, scopes, 0),
        ops.normalize: (x, *moments, *layer),
        ops.reduce: (x, x, *moments, *layer, True),
        ops.propagate: (x, x, *moments, *sums, *layer, None, 40),
    }.items():
        torch.library.opcheck(operator.default, args, test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32], ids=str)
def test_no_result_of_an_operator_aliases_another(dtype):
    """Of one instance 'in' is as large as 'bn', with which it is filled in evaluation."""
    x = torch.randn(1, 3, 4, 5, dtype=dtype)
    moments = torch.ops.sn_mm.measure(x, torch.zeros(3), torch.ones(3), ['bn'], 0)
    assert moments[0].data_ptr() != moments[2].data_ptr()


def test_copies_of_a_compiled_layer_are_layers_of_their_own(tmp_path):
    """``Module.compile`` keeps the compiled forward, which runs the original's weights."""
    layer = SwitchNorm2d(3)
    layer.compile(backend='aot_eager')
    x = torch.randn(2, 3, 4, 4)
    layer(x)
    torch.save(layer, tmp_path / 'layer.pth')
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(tmp_path / 'layer.pth', weights_only=False),
    ):
        with torch.no_grad():
            twin.bias.fill_(5.0)
        assert abs(twin(x).mean() - 5) < 0.1 and abs(layer(x).mean()) < 0.1
    shallow = copy.copy(layer)
    shallow.eval()
    assert layer.training and not torch.allclose(shallow(x), layer(x))


def test_an_eager_layer_runs_while_another_thread_compiles():
    """``torch.compiler.is_compiling()`` is then true in this thread as well."""
    compiling, stepped = threading.Event(), threading.Event()

    def wait_for_steps(graph: nn.Module, _) -> Callable:
        compiling.set()
        assert stepped.wait(60)
        return graph.forward

    def compile_layer() -> None:
        torch.compile(nn.Linear(2, 2), backend=wait_for_steps)(torch.randn(2, 2))

    layer, x = SwitchNorm2d(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    thread = threading.Thread(target=compile_layer)
    thread.start()
    try:
        assert compiling.wait(60)
        for _ in range(3):
            assert not any(look_at(x, synchronized=False))
            layer(x).sum().backward()
    finally:
        stepped.set()
        thread.join()
    assert layer.num_batches_tracked == 3


@pytest.mark.slow
def test_the_import_alone_does_not_import_the_compiler():
    code = "import sn_mm, sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
