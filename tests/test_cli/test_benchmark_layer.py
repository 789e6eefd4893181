"""``sn-mm benchmark-layer``: its measurements, on small inputs, and the files that it writes."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from reference import switch_norm as reference
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.benchmark import shapes
from sn_mm.benchmark.measure import SWEEPS, Passes, measure, peak_bytes, time_side_by_side
from sn_mm.benchmark.plain import PlainSwitchNorm2d
from sn_mm_cli import PROGRAM
from sn_mm_cli.main import main


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_plain_layer_is_switchable_normalization(training):
    layer = PlainSwitchNorm2d(3).train(training)
    for p in layer.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 3, 5, 4)
    buffers = {name: b.clone() for name, b in layer.named_buffers()}
    expected = reference([x], training=training, **dict(layer.named_parameters()), **buffers)
    torch.testing.assert_close(layer(x).double(), expected.outputs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var.double(), expected.running_var)


def test_memory_kept_for_backward():
    class Masked(nn.Module):
        def forward(self, x):
            return (x * x).masked_fill(x > 0, 0)  # keeps x, and a mask of a byte a value

    x = torch.randn(2, 8, 64, 64, requires_grad=True)
    assert Passes(Masked(), x, torch.randn_like(x)).kept_bytes() == 5 * x.numel()
    kept = Passes(SwitchNorm2d(8), x, torch.randn_like(x)).kept_bytes()
    assert 1 < kept / (4 * x.numel()) <= 1.02


@pytest.mark.skipif(
    not hasattr(torch._C._autograd._KinetoEvent, 'start_ns'),
    reason='torch < 2.4 records no times that order allocations',
)
def test_peak_memory(device):
    class Exp(nn.Module):
        def forward(self, x):
            return x.exp()  # and its gradient

    x = torch.randn(2, 8, 64, 64, device=device, requires_grad=True)
    run = Passes(Exp(), x, torch.randn_like(x)).forward_backward
    assert peak_bytes(run, x.device) == 2 * 4 * x.numel()


def test_passes_take_turns():
    turns = []
    passes = {name: lambda name=name: turns.append(name) for name in 'ab'}
    times = time_side_by_side(passes, torch.device('cpu'), repeats=3)
    assert {key: len(t) for key, t in times.items()} == {'a': 3, 'b': 3}
    runs = [name for name, after in zip(turns, turns[1:] + ['']) if name != after]
    assert runs[-6:] == ['a', 'b'] * 3


@pytest.mark.skipif(
    not hasattr(torch._C._autograd._KinetoEvent, 'start_ns'),
    reason='torch < 2.4 records no times that order allocations',
)
def test_ratios_are_of_the_medians():
    layers = {'BatchNorm': nn.BatchNorm2d(4), 'SN': SwitchNorm2d(4)}
    batch, switch = measure(layers, torch.randn(2, 4, 8, 8), repeats=2)
    assert batch['ratio'] == 1
    times = [r['forward_backward']['median'] for r in (switch, batch)]
    assert np.isclose(switch['ratio'], times[0] / times[1])
    assert np.isclose(switch['copy_share'], switch['limit'] / times[0])
    assert switch['eval_to_group_norm'] is None
    for kind in SWEEPS:
        assert 0 < switch[kind]['q1'] <= switch[kind]['median'] <= switch[kind]['q3']


@pytest.mark.skipif(
    not hasattr(torch._C._autograd._KinetoEvent, 'start_ns'),
    reason='torch < 2.4 records no times that order allocations',
)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_host_time_is_that_of_a_tiny_input_in_the_format_of_the_large_one(memory_format):
    class Seen(nn.Identity):
        def forward(self, x):
            inputs.append((x.shape, x.stride()))
            return super().forward(x).exp()

    inputs = []
    x = torch.randn(4, 3, 8, 8).to(memory_format=memory_format)
    layers = {'BatchNorm': nn.BatchNorm2d(3), 'seen': Seen()}
    batch, seen = measure(layers, x, repeats=2, least=0.0)
    tiny = torch.empty(2, 3, 2, 2).to(memory_format=memory_format)
    assert {*inputs} == {(t.shape, t.stride()) for t in (x, tiny)}
    assert inputs[-1][0] == tiny.shape
    assert all(0 < r['host']['q1'] <= r['host']['median'] for r in (batch, seen))


def test_maps_are_scaled_to_the_device():
    full, small = ({c.name for c in shapes.cases(device)} for device in ('cuda', 'cpu'))
    assert {'R50-FPN 2x64x400x672', 'R50-FPN 2x2048x25x42', 'DeepLab 2x256x128x256'} <= full
    assert {'R50-FPN 2x64x144x240', 'R50-FPN 2x2048x9x15', 'DeepLab 2x256x46x90'} <= small
    assert {'RoI head 512x256x7x7', 'square 2x64x128x128'} <= full & small


@pytest.mark.slow
def test_command_writes_figures_and_pictures(tmp_path):
    out = tmp_path / 'results' / 'quick.json'
    options = ['--device', 'cpu', '--filter', '2x2048x9x15', '--format', 'channels_last',
               '--repeats', '2', '--threads', '1', '--compile', '--out', out]  # fmt: skip
    command = [*PROGRAM, 'benchmark-layer', *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert written['machine']['torch'] == torch.__version__
    assert written['machine'].keys() >= {'device', 'cpu', 'cores', 'threads', 'date', 'sn_mm'}
    layers = ['BatchNorm', 'SN', 'InstanceNorm', 'plain SN', 'GroupNorm']
    layers += ['BatchNorm, compiled', 'SN, compiled']
    assert [r['layer'] for r in written['records']] == layers
    for record in written['records']:
        assert record['shape'] == [2, 2048, 9, 15] and record['format'] == 'channels_last'
        assert record.keys() >= {'forward', 'forward_backward', 'eval', 'ratio', 'limit', 'kept',
                                 'peak', 'copy_share', 'eval_to_group_norm', 'host'}  # fmt: skip
    assert imread(out.with_suffix('.png')).ndim == 3
    assert '<svg' in out.with_suffix('.svg').read_text()
    assert 'plain SN' in done.stdout and 'R50-FPN' in done.stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--device', 'cpu', '--filter', '9x9x9'], "--filter '9x9x9' fits none of: R50-FPN 2x64"),
        (['--device', 'cpu', '--filter', '('], "--filter must be a regular expression, got '('"),
        (['--repeats', '0'], 'argument --repeats: a whole number of at least 1 is allowed'),
        (['--device', 'meta'], '--device must be cpu or cuda, got meta'),
    ],
)
def test_wrong_input_is_one_line(capsys, args, message):
    with pytest.raises(SystemExit) as exited:
        main(['benchmark-layer', *args])
    error = capsys.readouterr().err
    assert exited.value.code == 2 and len(error.splitlines()) == 1
    assert error.startswith(f'sn-mm benchmark-layer: error: {message}')
