"""``sn-mm convert-checkpoint``: what it writes loads and computes; wrong input is one line."""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from authors import TheirResNet, as_published, train
from mmengine.config import Config
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm.checkpoints.authors import TOOLBOXES
from sn_mm_cli.main import main


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights in src.pth, as the classification repository saves them."""
    monkeypatch.chdir(tmp_path)
    weights = as_published(TheirResNet(18, width=4), 'classification')
    torch.save({'epoch': 100, 'state_dict': weights}, 'src.pth')
    return weights


def run(*args: str) -> None:
    main(['convert-checkpoint', *args])


def refuse(capsys: pytest.CaptureFixture, *args: str, to: str = 'mmdet') -> str:
    """The one line with which the command ends; no file is new or changed."""
    before = {p: p.read_bytes() for p in Path().rglob('*') if p.is_file()}
    with pytest.raises(SystemExit) as exit_:
        run(*args, '--to', to)
    assert exit_.value.code == 2
    assert before == {p: p.read_bytes() for p in Path().rglob('*') if p.is_file()}
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.skipif(find_spec('mmdet') is None, reason='needs mmdet')
@pytest.mark.parametrize('wrapped', ['state_dict', 'model', None])
@torch.no_grad()
def test_the_printed_config_builds_a_network_that_gives_their_outputs(
    wrapped: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    from mmdet.registry import MODELS

    monkeypatch.chdir(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    theirs = train(TheirResNet(18, width=8), x)
    weights = as_published(theirs, 'detection' if wrapped == 'model' else 'segmentation')
    torch.save({wrapped: weights} if wrapped else weights, 'src.pth')
    run('src.pth', 'new/dst.pth', '--to', 'mmdet')
    first, *config = capsys.readouterr().out.splitlines()
    assert first.startswith('new/dst.pth: ResNet-18 with 20 SN layers')
    Path('config.py').write_text('\n'.join(config))
    model = MODELS.build(dict(Config.fromfile('config.py').model.backbone, _scope_='mmdet'))
    model.init_weights()
    model.eval()
    for got, want in zip(model(x), theirs(x)):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


def test_it_records_where_the_weights_come_from(published, monkeypatch, capsys):
    run('src.pth', 'dst.pth', '--to', 'mmseg')
    written = torch.load('dst.pth', weights_only=True)
    meta = written['meta']
    assert meta['source'] == 'src.pth'
    assert meta['source_sha256'] == sha256(Path('src.pth').read_bytes()).hexdigest()
    assert (meta['source_naming'], meta['converted_for']) == ('classification', 'mmseg')
    assert meta['backbone']['norm_cfg'] == {'type': 'SN', 'correction': 1}
    assert 'left out, a classifier: module.fc.weight, module.fc.bias' in capsys.readouterr().out
    assert sorted(p.name for p in Path().iterdir()) == ['dst.pth', 'src.pth']


def test_converting_onto_itself_replaces_the_file_whole(published, monkeypatch):
    run('src.pth', 'src.pth', '--to', 'mmdet')
    weights = torch.load('src.pth', weights_only=True)['state_dict']
    assert torch.equal(weights['conv1.weight'], published['module.conv1.weight'])


def test_a_write_that_fails_leaves_what_was_there(published, monkeypatch):
    Path('dst.pth').write_text('older')

    def fail(obj: object, path: Path) -> None:
        path.write_text('half')
        raise OSError('No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='No space left'):
        run('src.pth', 'dst.pth', '--to', 'mmdet')
    assert Path('dst.pth').read_text() == 'older'
    assert sorted(p.name for p in Path().iterdir()) == ['dst.pth', 'src.pth']


def test_a_file_without_sn_says_so(published, monkeypatch, capsys):
    torch.save({'state_dict': nn.BatchNorm2d(4).state_dict()}, 'bn.pth')
    line = refuse(capsys, 'bn.pth', 'dst.pth')
    assert line == (
        'sn-mm convert-checkpoint: error: checkpoint bn.pth cannot be converted: it holds no SN '
        'layer: no key ends in .mean_weight'
    )


def test_a_missing_key_is_named(published, monkeypatch, capsys):
    del published['module.layer1.0.conv2.weight']
    torch.save({'state_dict': published}, 'src.pth')
    line = refuse(capsys, 'src.pth', 'dst.pth')
    assert 'src.pth cannot be converted' in line and 'missing: layer1.0.conv2.weight' in line


def test_another_model_with_sn_is_refused(published, monkeypatch, capsys):
    torch.save(nn.Sequential(SwitchNorm2d(4)).state_dict(), 'other.pth')
    line = refuse(capsys, 'other.pth', 'dst.pth')
    assert 'other.pth cannot be converted: (0, 0, 0, 0) basic blocks in its stages' in line


def test_a_file_that_is_missing_truncated_or_none_is_refused(published, monkeypatch, capsys):
    line = refuse(capsys, 'gone.pth', 'dst.pth')
    assert 'gone.pth does not exist' in line and 'src.pth' in line
    Path('half.pth').write_bytes(Path('src.pth').read_bytes()[:2000])
    assert 'half.pth cannot be loaded' in refuse(capsys, 'half.pth', 'dst.pth')
    torch.save([1, 2], 'list.pth')
    assert 'list.pth is not a checkpoint' in refuse(capsys, 'list.pth', 'dst.pth')


class Payload:
    def __reduce__(self) -> tuple:
        return print, ('run by a checkpoint',)


def test_a_file_that_would_run_code_is_refused(published, monkeypatch, capsys):
    torch.save({'state_dict': published, 'extra': Payload()}, 'evil.pth')
    line = refuse(capsys, 'evil.pth', 'dst.pth')
    assert 'evil.pth cannot be loaded: it names' in line and 'could run any code' in line


def test_an_unknown_toolbox_is_refused(published, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run('src.pth', 'dst.pth', '--to', 'detectron')
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in TOOLBOXES)
