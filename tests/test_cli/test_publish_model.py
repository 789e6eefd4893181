"""``sn-mm publish-model``: only weights and meta, a name that says which; bad input is one line."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn

from sn_mm import SwitchNorm2d
from sn_mm_cli.main import main

pytest.importorskip('mmengine')


@pytest.fixture(autouse=True)
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What src.pth holds: as MMEngine saves, with EMAHook's second copy."""
    monkeypatch.chdir(tmp_path)
    averaged, last = ({f'0.{k}': v + shift for k, v in state().items()} for shift in (0, 1))
    checkpoint = {
        'meta': {'epoch': 3, 'dataset_meta': {'classes': ('a', 'b')}},
        'state_dict': averaged,
        'ema_state_dict': {'steps': torch.tensor(9), **{f'module.{k}': last[k] for k in last}},
        'optimizer': {'state': {0: {'exp_avg': torch.zeros(100_000)}}},
        'param_schedulers': [{'last_step': 3}],
        'message_hub': {'log_scalars': {}},
    }
    torch.save(checkpoint, 'src.pth')
    return checkpoint


def state() -> dict[str, torch.Tensor]:
    return SwitchNorm2d(4).state_dict()


def run(*args: str) -> None:
    main(['publish-model', *args])


def published(folder: str = '.') -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != 'src.pth'}


def test_only_weights_and_meta_are_left_and_the_name_holds_the_hash(training, monkeypatch, capsys):
    run('src.pth', 'model.pth')
    ((name, content),) = published().items()
    assert name == f'model-{sha256(content).hexdigest()[:8]}.pth'
    written = torch.load(name, weights_only=True)
    assert written.keys() == {'meta', 'state_dict'} and written['meta'] == training['meta']
    torch.testing.assert_close(written['state_dict'], training['state_dict'], rtol=0, atol=0)
    assert len(content) < 20_000 < Path('src.pth').stat().st_size
    assert capsys.readouterr().out == f'{name}: 0.0 MB, EMA weights, 1 SN layers\n'


def test_the_same_weights_give_the_same_file_under_any_name(monkeypatch):
    for out in ('a/model.pth', 'b/other'):
        run('src.pth', out)
    (first, a), (second, b) = (*published('a').items(), *published('b').items())
    assert a == b and first.removeprefix('model') == second.removeprefix('other')


def test_no_ema_publishes_the_weights_before_averaging(training, monkeypatch, capsys):
    run('src.pth', 'model', '--no-ema')
    (name,) = published()
    for key, tensor in torch.load(name, weights_only=True)['state_dict'].items():
        assert torch.equal(tensor, training['ema_state_dict'][f'module.{key}'])
    assert 'last weights' in capsys.readouterr().out


def test_a_bare_state_dict_and_a_model_without_sn_are_published_too(monkeypatch, capsys):
    torch.save(nn.BatchNorm2d(4).state_dict(), 'src.pth')
    run('src.pth', 'bare')
    (name,) = published()
    written = torch.load(name, weights_only=True)
    assert written['meta'] == {} and len(written['state_dict']) == 5
    assert capsys.readouterr().out.endswith('last weights, no SN layers\n')


def test_a_write_that_fails_leaves_nothing(monkeypatch):
    def fail(path: Path, content: bytes) -> int:
        with path.open('wb') as file:
            file.write(content[:10])
        raise OSError('No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', fail)
    with pytest.raises(OSError, match='No space left'):
        run('src.pth', 'model')
    assert published() == {}


@pytest.mark.parametrize(
    ('content', 'options', 'message'),
    [
        (None, [], 'checkpoint src.pth does not exist; checkpoints in .: none'),
        ([1], [], 'checkpoint src.pth is not a checkpoint: it holds no weights'),
        ({'state_dict': {}}, [], 'checkpoint src.pth is not a checkpoint: it holds no weights'),
        ({'state_dict': state()}, ['--ema'], 'src.pth: it keeps no EMA weights (ema_state_dict)'),
        (b'no pickle', [], 'checkpoint src.pth cannot be loaded: 9 bytes, truncated or of another'),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(content, options, message, monkeypatch, capsys):
    if content is None:
        Path('src.pth').unlink()
    elif isinstance(content, bytes):
        Path('src.pth').write_bytes(content)
    else:
        torch.save(content, 'src.pth')
    with pytest.raises(SystemExit) as exit_:
        run('src.pth', 'model', *options)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert published() == {}
