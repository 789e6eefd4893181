"""Graphs that leave Python give the numbers of the layer, at other sizes too."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sn_mm import SparseSwitchNorm2d, SwitchNorm2d, set_radius

ARGS = [{}, {'correction': 1}, {'normalizers': ('in', 'ln')}, {'track_running_stats': False}]
pytestmark = pytest.mark.usefixtures('fresh_compiler')


def network(kind: type[SwitchNorm2d] = SwitchNorm2d, **layer_args) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), kind(8, **layer_args), nn.ReLU())
    norm = model[1]
    for parameter in (norm.mean_weight, norm.var_weight, norm.weight, norm.bias):
        nn.init.normal_(parameter)
    model(torch.randn(4, 3, 8, 8))  # moves the running statistics
    return model.eval()


def traced(model: nn.Module, x: Tensor) -> nn.Module:
    return torch.jit.trace(model, x)


def frozen(model: nn.Module, x: Tensor) -> nn.Module:
    return torch.jit.freeze(torch.jit.trace(model, x))


def scripted(model: nn.Module, x: Tensor) -> nn.Module:
    return torch.jit.script(model)


def exported(model: nn.Module, x: Tensor, strict: bool = False) -> nn.Module:
    dynamic = getattr(getattr(torch.export, 'Dim', None), 'DYNAMIC', None)
    if dynamic is None:
        pytest.skip('torch < 2.6 exports no sizes that are open without names')
    dims = dict.fromkeys((0, 2, 3), dynamic)
    return torch.export.export(model, (x,), dynamic_shapes=(dims,), strict=strict).module()


def assert_equal_at_any_size(graph: nn.Module, model: nn.Module) -> None:
    with torch.no_grad():
        for shape in [(2, 3, 6, 7), (3, 3, 9, 5), (2, 3, 1, 1)]:
            x = torch.randn(shape)
            torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('record', [traced, frozen, scripted, exported])
@pytest.mark.parametrize('args', ARGS, ids=str)
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_recorded_model_gives_the_same_output_at_any_size(record, args):
    model = network(**args)
    graph = record(copy.deepcopy(model), torch.randn(2, 3, 6, 7))
    assert_equal_at_any_size(graph, model)


def sparse_network(radius: float) -> nn.Module:
    """With radius 1 the importance is on 'in', which one position per channel leaves out."""
    model = network(SparseSwitchNorm2d)
    with torch.no_grad():
        model[1].mean_weight.copy_(torch.tensor([0.6, 0.1, 0.3]))
        model[1].var_weight.copy_(torch.tensor([0.4, 0.3, 0.1]))
    set_radius(model, radius)
    return model


@pytest.mark.parametrize('record', [traced, scripted, exported])
@pytest.mark.parametrize('radius', [0.5, 1.0])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_recorded_model_with_sparse_norms_gives_the_same_output_at_any_size(record, radius):
    model = sparse_network(radius)
    graph = record(copy.deepcopy(model), torch.randn(2, 3, 6, 7))
    assert_equal_at_any_size(graph, model)


@pytest.mark.parametrize('make', [network, partial(sparse_network, 1.0)], ids=['SN', 'SSN'])
def test_a_strict_export_gives_the_same_output_at_any_size(make):
    """Its tracer takes open sizes for ints."""
    model = make()
    graph = exported(copy.deepcopy(model), torch.randn(2, 3, 6, 7), strict=True)
    assert_equal_at_any_size(graph, model)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_scripted_layer_leaves_the_instance_scope_out_of_single_positions():
    model = network()
    x = torch.randn(3, 8, 1, 1)
    torch.testing.assert_close(torch.jit.script(model[1])(x), model[1](x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_scripted_layer_stops_tracking_where_the_attribute_is_false():
    layer = SwitchNorm2d(3)
    layer.track_running_stats = False
    torch.jit.script(layer)(torch.randn(2, 3, 4, 5))
    assert layer.num_batches_tracked == 0 and not layer.running_mean.any()


@pytest.mark.parametrize('strict', [False, True], ids=['', 'strict'])
def test_export_in_training_says_that_the_graph_stays_there(strict):
    if not hasattr(torch.compiler, '_is_exporting_flag'):
        pytest.skip('torch < 2.7 does not tell its export from torch.compile')
    with pytest.warns(UserWarning, match='goes on with batch statistics'):
        torch.export.export(network().train(), (torch.randn(2, 3, 6, 7),), strict=strict)


@pytest.mark.filterwarnings('ignore')
def test_torchao_leaves_a_graph_of_switch_norm_in_training():
    """It looks for the operators of BatchNorm and dropout: the warning above is true."""
    pt2e = pytest.importorskip('torchao.quantization.pt2e', exc_type=ImportError)
    model, x = network(), torch.randn(2, 3, 6, 7)
    graph = torch.export.export(copy.deepcopy(model).train(), (x,)).module()
    moved = pt2e.move_exported_model_to_eval(graph)
    training = copy.deepcopy(model).train()
    torch.testing.assert_close(moved(x), training(x), rtol=1e-5, atol=1e-5)
    evaluated = pt2e.move_exported_model_to_eval(torch.export.export(model, (x,)).module())
    torch.testing.assert_close(evaluated(x), model(x), rtol=1e-5, atol=1e-5)


# --- ONNX ----------------------------------------------------------------------------------------

SIZES = [(2, 3, 6, 7), (3, 3, 9, 5), (1, 3, 1, 1)]


def deep_network(**layer_args) -> nn.Module:
    """Four layers, of which two are equal and new, as all are where training begins."""
    new = nn.Sequential(nn.Conv2d(8, 3, 1), SwitchNorm2d(3, **layer_args))
    layers = network(**layer_args), new, network(**layer_args), copy.deepcopy(new)
    return nn.Sequential(*layers).eval()


def assert_equal_in_onnxruntime(path: Path, model: nn.Module, sizes: list[tuple[int, ...]]) -> None:
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(path)
    for shape in sizes:
        x = torch.randn(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


def operations(path: Path) -> int:
    """Those of the file. A constant is none, though some exporters write a node for it."""
    nodes = pytest.importorskip('onnx').load(path).graph.node
    return sum(node.op_type != 'Constant' for node in nodes)


@pytest.mark.parametrize('opset', [13, 20])
@pytest.mark.parametrize('args', ARGS, ids=str)
@pytest.mark.filterwarnings('ignore')
def test_torchs_older_exporter_by_its_default_flags(args, opset, tmp_path):
    model, path = deep_network(**args), tmp_path / 'model.onnx'
    axes = {'input_names': ['x'], 'dynamic_axes': {'x': [0, 2, 3]}}
    for arguments, sizes in [({}, SIZES[:1]), (axes, SIZES)]:
        x = torch.randn(SIZES[0])
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=opset, **arguments)
        assert_equal_in_onnxruntime(path, model, sizes)


@pytest.mark.slow
@pytest.mark.parametrize('is_open', [False, True], ids=['fixed', 'open'])
@pytest.mark.filterwarnings('ignore')
def test_torchs_newer_exporter_by_its_default_flags(is_open, tmp_path):
    pytest.importorskip('onnxscript')
    dynamic = getattr(getattr(torch.export, 'Dim', None), 'DYNAMIC', None)
    if dynamic is None:
        pytest.skip('torch < 2.6 exports no sizes that are open without names')
    shapes = {'dynamic_shapes': (dict.fromkeys((0, 2, 3), dynamic),)} if is_open else {}
    model, path = deep_network(), tmp_path / 'model.onnx'
    torch.onnx.export(model, (torch.randn(SIZES[0]),), path, dynamo=True, verbose=False, **shapes)
    assert_equal_in_onnxruntime(path, model, SIZES if is_open else SIZES[:1])
    assert operations(path) <= 4 * (30 if is_open else 24) + 6  # four convolutions, two ReLUs


@pytest.mark.parametrize('radius', [0.5, 1.0])
@pytest.mark.filterwarnings('ignore')
def test_a_file_of_sparse_norms(radius, tmp_path):
    model, path, x = sparse_network(radius), tmp_path / 'model.onnx', torch.randn(SIZES[0])
    axes = {'input_names': ['x'], 'dynamic_axes': {'x': [0, 2, 3]}}
    torch.onnx.export(model, (x,), path, dynamo=False, **axes)
    assert_equal_in_onnxruntime(path, model, SIZES)


@pytest.mark.filterwarnings('ignore')
def test_a_graph_has_the_operations_of_the_equations(tmp_path):
    path, x = tmp_path / 'model.onnx', torch.randn(2, 8, 6, 7)
    torch.onnx.export(SwitchNorm2d(8).eval(), (x,), path, dynamo=False)
    assert operations(path) <= 24


@pytest.mark.filterwarnings('ignore')
def test_far_from_zero_a_file_is_as_exact_as_group_norms(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    x = torch.randn(2, 8, 32, 32) + 1e3
    errors = []
    for norm in (SwitchNorm2d(8, normalizers=('in', 'ln')), nn.GroupNorm(1, 8)):
        torch.onnx.export(norm.eval(), (x,), tmp_path / 'norm.onnx', dynamo=False)
        session = onnxruntime.InferenceSession(tmp_path / 'norm.onnx')
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            truth = norm.double()(x.double())
        errors.append((torch.from_numpy(found) - truth).abs().max().item())
    assert errors[0] <= max(2 * errors[1], 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_openvino_takes_the_model_and_its_file(tmp_path):
    openvino = pytest.importorskip('openvino')
    model, x, path = deep_network(), torch.randn(SIZES[0]), tmp_path / 'model.onnx'
    torch.onnx.export(
        model, (x,), path, dynamo=False, input_names=['x'], dynamic_axes={'x': [0, 2, 3]}
    )
    for graph in (openvino.convert_model(model, example_input=x), path):
        precision = {'INFERENCE_PRECISION_HINT': 'f32'}
        compiled = openvino.Core().compile_model(graph, 'CPU', precision)
        for shape in SIZES:
            x = torch.randn(shape)
            found = torch.from_numpy(compiled([x.numpy()])[0])
            with torch.no_grad():
                torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


_BY_MMDEPLOY = """
import sys, torch
from mmdeploy.apis.onnx import export

path, shape = sys.argv[1], eval(sys.argv[2])
export(
    torch.load(path + '.pth', weights_only=False), (torch.randn(shape),), path, 'onnxruntime',
    context_info={'deploy_cfg': {'onnx_config': {}, 'backend_config': {'type': 'onnxruntime'}}},
    input_names=['input'], output_names=['output'], opset_version=18,
    dynamic_axes={'input': {0: 'n', 2: 'h', 3: 'w'}},
)
"""


@pytest.mark.slow
def test_mmdeploys_exporter(tmp_path):
    """In a process of its own: mmdeploy searches all objects of one, for each function of torch."""
    pytest.importorskip('mmdeploy', reason='mmdeploy is not installed')
    model, path = network(), tmp_path / 'model'
    torch.save(model, path.with_suffix('.pth'))
    command = [sys.executable, '-c', _BY_MMDEPLOY, str(path), str(SIZES[0])]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    assert_equal_in_onnxruntime(path.with_suffix('.onnx'), model, SIZES)


def test_recording_checks_its_input_as_running_does():
    layer = SwitchNorm2d(3).eval()
    with pytest.raises(ValueError, match=r'C = 3, got \(2, 4, 5, 5\)'):
        torch.jit.trace(layer, torch.randn(2, 4, 5, 5))
    with pytest.raises(ValueError, match='no statistics for one position per channel'):
        torch.jit.trace(SwitchNorm2d(3, normalizers='in').eval(), torch.randn(2, 3, 1, 1))


@pytest.mark.parametrize('record', [traced, scripted, exported])
@pytest.mark.parametrize('args', ARGS, ids=str)
@pytest.mark.filterwarnings('ignore')
def test_a_model_recorded_in_training_trains_as_batch_norm_does(record, args):
    """Outputs, gradients and the running statistics of the next steps."""
    model = network(**args).train()
    recorded = record(copy.deepcopy(model), torch.randn(2, 3, 6, 7))
    for buffer, theirs in zip(model.buffers(), recorded.buffers()):
        theirs.copy_(buffer)  # tracing is a step, too
    for shape in [(2, 3, 6, 7), (3, 3, 9, 5)]:
        x = torch.randn(shape)
        y, z = model(x), recorded(x)
        torch.testing.assert_close(z, y, rtol=1e-5, atol=1e-5)
        y.square().sum().backward()
        z.square().sum().backward()
    theirs = dict(recorded.named_parameters())  # torch.export of torch 2.6 changes their order
    for name, p in model.named_parameters():
        torch.testing.assert_close(theirs[name].grad, p.grad, rtol=1e-4, atol=1e-4, msg=name)
    for (name, b), c in zip(model.named_buffers(), recorded.buffers()):
        torch.testing.assert_close(c, b, rtol=1e-5, atol=1e-5, msg=name)
