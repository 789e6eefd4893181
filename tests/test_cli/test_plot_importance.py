"""``sn-mm plot-importance``: pictures for what has SN, one clear line for what has not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.analysis import importance
from sn_mm.cli import plot_importance
from sn_mm_cli.main import main


def network() -> nn.Module:
    layers = {f'layer{stage}': nn.Sequential(SwitchNorm2d(2)) for stage in (1, 2)}
    model = nn.ModuleDict({'backbone': nn.ModuleDict(layers), 'neck': SwitchNorm2d(2)})
    for p in model.parameters():
        nn.init.normal_(p)
    return model


def checkpoint(path: Path, model: nn.Module | None = None, **extra: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'state_dict': (model or network()).state_dict(), **extra}, path)
    return str(path)


def log(path: Path, *steps: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = importance.from_model(network())
    lines = [{**importance.to_scalars(layers, 'layer'), 'step': step} for step in steps]
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in [{'loss': 1, 'step': 1}, *lines]))
    return str(path)


def run(*args: str) -> None:
    main(['plot-importance', *args])


def refuse(capsys: pytest.CaptureFixture, out: Path, *args: str) -> str:
    """The one line with which the command ends; nothing is written."""
    with pytest.raises(SystemExit) as exit_:
        run(*args, '--out', str(out))
    assert exit_.value.code == 2
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_checkpoints_and_logs_become_png_and_svg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'figures'
    files = [checkpoint(tmp_path / name / 'epoch_1.pth') for name in ('8x2', '8x1')]
    work_dir = tmp_path / 'run'
    log(work_dir / '1' / 'vis_data' / 'scalars.json', 0, 100)
    run(*files, '--logs', str(work_dir), '--out', str(out))
    names = ['components', 'course', 'layers']
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f'{name}.{suffix}' for name in names for suffix in ('png', 'svg')
    )
    for name in names:
        assert np.ptp(imread(out / f'{name}.png')) > 0.5
        assert '<svg' in (out / f'{name}.svg').read_text()
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    run(*files, '--logs', str(work_dir), '--out', str(out))
    assert first == {p.name: p.read_bytes() for p in out.iterdir()}


def test_labels_are_what_tells_paths_apart(tmp_path: Path) -> None:
    label = plot_importance.label_checkpoints
    assert label(['a/b/epoch_3.pth']) == ['epoch_3']
    assert label(['a/8x2/epoch_3.pth', 'a/8x1/epoch_3.pth']) == ['8x2/epoch_3', '8x1/epoch_3']
    assert label(['a/epoch_1.pth', 'a/epoch_2.pth']) == ['epoch_1', 'epoch_2']


def test_a_resumed_log_overrides_what_it_repeats(tmp_path: Path) -> None:
    first = log(tmp_path / '1' / 'scalars.json', 0, 100, 200, 300)
    second = log(tmp_path / '2' / 'scalars.json', 150, 250)
    course = plot_importance.read_logs([Path(first), Path(second)])
    assert list(course) == [0, 100, 150, 250]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'figures'
    good = checkpoint(tmp_path / 'good.pth')
    without = checkpoint(tmp_path / 'bn.pth', nn.BatchNorm2d(2))
    two = checkpoint(tmp_path / 'two.pth', nn.Sequential(SwitchNorm2d(2, normalizers=('in', 'bn'))))
    empty = tmp_path / 'empty.json'
    empty.write_text('{"loss": 1, "step": 1}\n')
    broken = tmp_path / 'broken.json'
    broken.write_text('{"sn_layer/mean\n')
    for args, message in [
        ([], 'nothing to draw'),
        ([good, without], f'{without} holds no SN layer'),
        ([two], '0 mixes 2 of the scopes'),
        ([str(tmp_path / 'none.pth')], 'does not exist'),
        ([good, good], '--labels must name each of the 2 checkpoints differently'),
        ([good, '--labels', 'a', 'b'], '--labels must name each of the 1 checkpoints differently'),
        (['--logs', str(empty)], '0 entries of SwitchWeightsHook'),
        (['--logs', str(broken)], f'log {broken} cannot be read'),
        (['--logs', str(tmp_path / 'none.json')], 'none.json does not exist'),
    ]:
        assert message in refuse(capsys, out, *args)


def test_scopes_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = checkpoint(tmp_path / 'two.pth', nn.Sequential(SwitchNorm2d(2, normalizers=('in', 'bn'))))
    run(two, '--normalizers', 'in', 'bn', '--out', str(tmp_path / 'figures'))
    assert len(list((tmp_path / 'figures').iterdir())) == 4
