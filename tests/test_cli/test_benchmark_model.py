"""``sn-mm benchmark-model``: a training step with a model's own norms and with SN."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from torch import nn
from torch._dynamo import OptimizedModule

from sn_mm.cli import benchmark_model
from sn_mm_cli import PROGRAM
from sn_mm_cli.main import main

DEEPLAB = 'mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py'


RESNET = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'


def run(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, 'benchmark-model', *map(str, args)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_models_are_measured_in_one_run(tmp_path):
    out = tmp_path / 'model.json'
    ended = run(DEEPLAB, '--size', 64, '--repeats', 2, '--out', out)
    assert ended.returncode == 0, ended.stderr
    assert 'SyncBN' in ended.stdout and str(out) in ended.stdout
    found = json.loads(out.read_text())
    assert found['machine']['size'] == 64 and found['machine']['config'] == DEEPLAB
    own, sn = found['records']
    assert (own['model'], sn['model']) == ('own norms', 'SN')
    assert own['ratio'] == 1 and sn['ratio'] == sn['step']['median'] / own['step']['median']
    for record in (own, sn):
        assert 0 < record['step']['q1'] <= record['step']['median'] <= record['step']['q3']
        assert record['peak_mib'] > 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_inference_is_measured_beside_own_norms_and_group_norm(tmp_path):
    for package in ('mmpretrain', 'onnx', 'onnxruntime'):
        pytest.importorskip(package)
    out = tmp_path / 'model.json'
    ended = run(RESNET, '--onnx', '--size', 64, '--repeats', 2, '--out', out)
    assert ended.returncode == 0, ended.stderr
    assert 'Inference of 1 image of 64x64' in ended.stdout
    records = json.loads(out.read_text())['records']
    assert [record['model'] for record in records] == [
        f'{norms}{way}' for norms in ('own norms', 'GN', 'SN') for way in ('', ', eager')
    ]
    own = records[0]['inference']['median']
    for record in records:
        assert record['ratio'] == record['inference']['median'] / own > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_models_stand_beside_eager_ones(tmp_path):
    """Without the compiler's minutes: TORCHDYNAMO_DISABLE runs what is compiled as it is."""
    pytest.importorskip('mmpretrain')
    out = tmp_path / 'model.json'
    args = '--compile', '--format', 'channels_last', '--size', 64, '--repeats', 1, '--out', out
    ended = run(RESNET, *args, TORCHDYNAMO_DISABLE='1')
    assert ended.returncode == 0, ended.stderr
    assert 'A training step on 2 images of 64x64, channels_last' in ended.stdout
    eager = ['own norms', 'GN', 'SN']
    names = [record['model'] for record in json.loads(out.read_text())['records']]
    assert names == eager + [f'{name}, compiled' for name in eager]


def test_backbone_and_neck_are_compiled():
    parts = {'backbone': nn.Linear(2, 2), 'neck': nn.Linear(2, 2), 'head': nn.Linear(2, 2)}
    model = nn.Module()
    for name, part in parts.items():
        model.add_module(name, part)
    benchmark_model.compile_features(model)
    compiled = {k for k, m in model.named_children() if isinstance(m, OptimizedModule)}
    assert compiled == {'backbone', 'neck'}


@pytest.mark.parametrize(
    ('args', 'line'),
    [
        ((DEEPLAB, '--onnx', '--device', 'cuda'), '--onnx measures on the CPU, got --device cuda'),
        ((DEEPLAB, '--onnx', '--compile'), '--compile measures training steps, and --onnx'),
        ((DEEPLAB, '--size', '0'), '--size: a whole number of at least 1 is allowed'),
        ((DEEPLAB, '--norm', 'LN'), "'LN'"),
        (('mmseg::deeplabv3plus/nothing.py',), 'does not exist'),
        (('mmseg::_base_/default_runtime.py',), 'has no model'),
    ],
)
def test_bad_input_ends_in_one_line(args, line, monkeypatch, capsys):
    pytest.importorskip('mmseg')
    # It would start Python anew.
    monkeypatch.setattr(benchmark_model, 'hold_freed_memory', lambda _: None)
    with pytest.raises(SystemExit) as stop:
        main(['benchmark-model', *args])
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert last.startswith('sn-mm benchmark-model: error: ') and line in last
