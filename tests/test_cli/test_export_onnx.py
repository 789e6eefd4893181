"""``sn-mm export-onnx``: real networks of the toolboxes, run by onnxruntime at sizes of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from sn_mm import SwitchNorm2d
from sn_mm.cli import export_onnx
from sn_mm_cli.main import main

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(
        not all(map(find_spec, ('mmcv', 'mmdet', 'mmseg', 'onnx', 'onnxruntime'))),
        reason='needs the toolboxes, onnx and onnxruntime',
    ),
    pytest.mark.filterwarnings('ignore'),
]
DEMO = {
    'mmseg': 'deeplabv3plus_r18-d8-sn_2xb2-150_scenes.py',
    'mmdet': 'mask-rcnn_r18-sn_fpn_2xb2-3e_scenes.py',
}
R50 = """
_base_ = 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'
norm_cfg = dict(type='sn_mm.SN')
model = dict(
    pretrained=None,
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg))
"""


def images(*shape: int) -> Tensor:
    return torch.randn(shape[0], 3, *shape[1:]) + torch.randn(shape[0], 3, 1, 1)


@torch.no_grad()
def trained(config: str | Path, toolbox: str, path: Path) -> nn.Module:
    """As after training: mixes of all kinds, statistics of real activations, outputs of order 1."""
    torch.manual_seed(0)
    model = MODELS.build(dict(Config.fromfile(config).model, _scope_=toolbox))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_in')
        elif isinstance(module, SwitchNorm2d):
            module.momentum = None
            module.weight.uniform_(0.5, 1.5)
            for parameter in (module.bias, module.mean_weight, module.var_weight):
                parameter.normal_(0, 0.5)
    for module in model.modules():  # what keeps residual networks from amplifying what is rounded
        if hasattr(module, 'downsample'):
            (module.norm3 if hasattr(module, 'conv3') else module.norm2).weight.mul_(0.2)
    model.train()
    for _ in range(2):
        features = model.extract_feat(images(2, 64, 96))
        if toolbox == 'mmseg':
            model.decode_head(features)
    torch.save({'state_dict': model.state_dict()}, path)
    return model.eval()


def run(*args: str | Path) -> None:
    main(['export-onnx', *map(str, args)])


@torch.no_grad()
def assert_same_in_onnxruntime(model: nn.Module, file: Path, toolbox: str) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    for shape in [(1, 128, 192), (3, 160, 128)]:
        x = images(*shape)
        found = session.run(None, {'image': x.numpy()})
        if toolbox == 'mmseg':
            logits = model(x, mode='tensor')
            size = {'size': x.shape[2:], 'align_corners': model.align_corners}
            wanted = [nn.functional.interpolate(logits, mode='bilinear', **size)]
        else:
            wanted = model.extract_feat(x)
        assert len(found) == len(wanted)
        for got, want in zip(found, wanted):
            assert want.std() > 0.1
            assert got.shape == want.shape
            assert np.abs(got - want.numpy()).max() <= 1e-4 * want.std().clamp(min=1)


@pytest.mark.parametrize(
    ('toolbox', 'size'),
    [
        ('mmdet', 'small'),
        pytest.param('mmseg', 'r50', marks=pytest.mark.slow),
    ],
)
def test_one_file_gives_the_models_outputs_at_two_sizes(
    toolbox: str,
    size: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = ROOT / 'configs' / 'demo' / DEMO[toolbox]
    if size == 'r50':
        config = tmp_path / 'r50.py'
        config.write_text(R50)
    model = trained(config, toolbox, tmp_path / 'in.pth')
    file = tmp_path / 'deployed' / 'out.onnx'
    run(config, tmp_path / 'in.pth', file, '--shape', '64', '96')
    assert 'opset 17, differs from the model by' in capsys.readouterr().out
    assert [p.name for p in file.parent.iterdir()] == ['out.onnx']
    assert_same_in_onnxruntime(model, file, toolbox)


def test_equal_constants_stay(tmp_path: Path) -> None:
    """The exporter's own folding writes a file that does not load: all ones in a fresh layer."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), SwitchNorm2d(4), nn.Conv2d(4, 4, 1), SwitchNorm2d(4)
    )
    network.eval()
    export_onnx.export(network, images(1, 8, 8), tmp_path / 'out.onnx')
    shapes = [(1, 8, 8), (3, 5, 9), (2, 1, 1)]
    error = export_onnx.check(network, tmp_path / 'out.onnx', [images(*s) for s in shapes])
    assert error < 1e-6


class FixedSize(nn.Module):
    """What a head does that keeps the size it was recorded with."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, [int(s) for s in x.shape[2:]])


def test_a_model_that_keeps_its_size_is_refused(tmp_path: Path) -> None:
    export_onnx.export(FixedSize(), images(1, 8, 8), tmp_path / 'out.onnx')
    with pytest.raises(ValueError, match=r'at \(2, 3, 16, 8\), .* logits as .* from the model'):
        export_onnx.check(FixedSize(), tmp_path / 'out.onnx', [images(2, 16, 8)])


def test_another_function_is_refused(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 4, 1)
    export_onnx.export(network, images(1, 8, 8), tmp_path / 'out.onnx')
    nn.init.normal_(network.weight)
    with pytest.raises(ValueError, match='onnxruntime gives'):
        export_onnx.check(network, tmp_path / 'out.onnx', [images(1, 8, 8)])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ([], 'checkpoint weights.pth does not exist'),
        (['--shape', '0', '64'], "--shape: a whole number of at least 1 is allowed, got '0'"),
        (['other'], 'checkpoint other.pth does not fit the model'),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    change: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': SwitchNorm2d(4).state_dict()}, 'other.pth')
    name, args = ('other.pth', []) if change == ['other'] else ('weights.pth', change)
    with pytest.raises(SystemExit) as exit_:
        run(ROOT / 'configs' / 'demo' / DEMO['mmseg'], name, 'out.onnx', *args)
    assert exit_.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if 'error:' in line)
    assert message in line
    assert not Path('out.onnx').exists()
