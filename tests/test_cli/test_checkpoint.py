"""Checkpoints load without running what they say, whole, and with no weight dropped."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.utils import digit_version
from torch import nn

from sn_mm import convert_switch_norm
from sn_mm.cli import checkpoint
from sn_mm.cli.checkpoint import (
    check_checkpoint,
    check_pretrained,
    downloading,
    find_resumable,
    load_strictly,
)
from sn_mm.engine.safe_load import safe_load
from sn_mm.errors import InputError


def whole(**more) -> dict:
    """As mmengine writes it: weights, log history with numpy inside, optimizer state."""
    return {
        'state_dict': {'a': torch.ones(3)},
        'meta': {'iter': np.int64(3)},
        'message_hub': {
            'loss': HistoryBuffer([1.5, 2.5], [1, 1]),
            'best_score': np.float64(0.5),
            'best_mIoU': np.float32(0.5),
        },
        'optimizer': {'state': {}, 'param_groups': []},
        **more,
    }


def torch_refuses() -> bool:
    """Whether MMEngine's own loads refuse code; before torch 2.6 they run it."""
    return digit_version(torch.__version__) >= digit_version('2.6.0')


class Runs:
    """Its pickle calls whatever it was given."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_what_mmengine_writes_is_loaded(tmp_path):
    path = str(tmp_path / 'a.pth')
    torch.save(whole(), path)
    check_checkpoint(path, resume=True)
    loaded = safe_load(Path(path))
    torch.testing.assert_close(loaded['state_dict']['a'], torch.ones(3))
    assert loaded['meta'] == {'iter': 3}
    history = loaded['message_hub']['loss']
    assert history.mean() == 2.0 and history.statistics('max') == 2.5


@pytest.mark.parametrize('name', [b'numpy.core', b'numpy._core'])
def test_what_either_numpy_wrote_is_loaded(tmp_path, name):
    path = tmp_path / 'a.pth'
    torch.save(whole(), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b'numpy._core.multiarray' in data or b'numpy.core.multiarray' in data
    for known in (b'numpy.core', b'numpy._core'):
        data = data.replace(known + b'.multiarray', name + b'.multiarray')
    path.write_bytes(data)
    check_checkpoint(str(path))


@pytest.mark.parametrize(
    'evil',
    [
        Runs(os.system, ('touch run',)),
        Runs(eval, ("open('run', 'w')",)),
        Runs(getattr, (HistoryBuffer, 'update')),
        Runs(getattr, (Path, 'unlink')),
    ],
    ids=['system', 'eval', 'getattr of another method', 'getattr of another object'],
)
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    torch.save(whole(evil=evil), 'a.pth')
    with pytest.raises(InputError, match='a.pth cannot be loaded'):
        check_checkpoint('a.pth')
    with pytest.raises(pickle.UnpicklingError):
        safe_load(Path('a.pth'))
    if torch_refuses():  # in MMEngine's own loads too
        with pytest.raises(pickle.UnpicklingError):
            CheckpointLoader.load_checkpoint('a.pth')
    assert not Path('run').exists()


def test_arrays_in_a_checkpoint_cannot_take_its_bytes_for_objects(tmp_path):
    # NumPy's own dtype would then take objects too.
    hostile = 3, '<', None, ('a',), {'a': (np.dtype('f8'), 0)}, 8, 1, 0
    torch.save(whole(kind=Runs(np.dtype, ('f8', False, True), hostile)), tmp_path / 'a.pth')
    altered = pickle.loads(pickle.dumps(Runs(np.dtype, ('f8', False, True), hostile)))
    assert altered.fields is not None
    kind = safe_load(tmp_path / 'a.pth')['kind']
    assert kind.fields is None and kind == np.float64
    buffer = Runs(np.ndarray, ((1,), [('a', 'O')], b'12345678'))
    torch.save(whole(buffer=buffer), tmp_path / 'c.pth')
    with pytest.raises(pickle.UnpicklingError, match='may not call numpy.ndarray'):
        safe_load(tmp_path / 'c.pth')
    torch.save(whole(kind=np.dtype('O')), tmp_path / 'b.pth')
    with pytest.raises(pickle.UnpicklingError, match="may not name the dtype 'O8?'"):
        safe_load(tmp_path / 'b.pth')


def test_what_is_not_a_whole_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(whole(), 'whole.pth')
    data = Path('whole.pth').read_bytes()
    Path('truncated.pth').write_bytes(data[: len(data) // 2])
    Path('empty.pth').write_bytes(b'')
    Path('text.pth').write_text('not a checkpoint\n')
    Path('pickle.pth').write_bytes(pickle.dumps({'a': 1}))
    for name in ('truncated', 'empty', 'text', 'pickle'):
        with pytest.raises(InputError, match=f'{name}.pth cannot be loaded: .*truncated'):
            check_checkpoint(f'{name}.pth')
    torch.save([1, 2], 'list.pth')
    torch.save({'lr': 0.1}, 'numbers.pth')
    for name in ('list', 'numbers'):
        with pytest.raises(InputError, match=f'{name}.pth is not a checkpoint'):
            check_checkpoint(f'{name}.pth')
    with pytest.raises(
        InputError, match=r'none.pth does not exist; .*: empty.pth, list.pth, .* and 2 more'
    ):
        check_checkpoint('none.pth')
    with pytest.raises(InputError, match=r'\. is a folder'):
        check_checkpoint('.')
    check_checkpoint('https://host/not-looked-at.pth')


def test_weights_alone_are_loaded_but_not_resumed(tmp_path):
    path = str(tmp_path / 'old.pth')
    torch.save({'a': torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    check_checkpoint(path)
    with pytest.raises(InputError, match='holds no meta, message_hub, optimizer'):
        check_checkpoint(path, resume=True)


def test_resuming_takes_the_recorded_checkpoint_or_the_newest_whole_one(tmp_path, capsys):
    with pytest.raises(InputError, match='nothing to resume .*: no checkpoint'):
        find_resumable(str(tmp_path))
    for age, name in enumerate(['iter_30.pth', 'iter_20.pth', 'iter_10.pth']):
        torch.save(whole(), tmp_path / name)
        os.utime(tmp_path / name, (0, 1000 - age))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_20.pth'))
    assert find_resumable(str(tmp_path)) == str(tmp_path / 'iter_20.pth')

    # Killed while it wrote iter_20: what is left is neither it nor the best weights alone.
    (tmp_path / 'iter_20.pth').write_bytes(b'PK')
    torch.save({'state_dict': {'a': torch.ones(3)}}, tmp_path / 'best.pth')
    capsys.readouterr()
    assert find_resumable(str(tmp_path)) == str(tmp_path / 'iter_30.pth')
    said = capsys.readouterr().out
    assert 'iter_20.pth cannot be loaded' in said and 'Resuming from' in said

    # Killed between opening and writing last_checkpoint.
    (tmp_path / 'last_checkpoint').write_text('')
    assert find_resumable(str(tmp_path)) == str(tmp_path / 'iter_30.pth')

    for name in ('iter_30.pth', 'iter_10.pth'):
        (tmp_path / name).write_bytes(b'')
    with pytest.raises(InputError, match='nothing to resume .*iter_30.pth cannot be loaded'):
        find_resumable(str(tmp_path))


def test_initial_weights_that_are_not_there_are_refused(tmp_path):
    file = tmp_path / 'a.pth'
    model = {'backbone': {'init_cfg': [{'type': 'Pretrained', 'checkpoint': str(file)}]}}
    with pytest.raises(InputError, match=r"a.pth' in the model does not exist"):
        check_pretrained(model)
    file.touch()
    with pytest.raises(InputError, match=r'^checkpoint in the model: .*a.pth cannot be loaded'):
        check_pretrained(model)
    torch.save({'a': torch.ones(3)}, file)
    check_pretrained({**model, 'pretrained': 'open-mmlab://resnet50_v1c'})
    check_pretrained({'init_cfg': {'checkpoint': None}, 'norm': [1, 'a']})


def test_a_download_that_fails_is_one_line_with_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = 'http://127.0.0.1:1/weights.pth'
    model = {'backbone': {'init_cfg': {'checkpoint': url}}, 'neck': {'checkpoint': 'local.pth'}}
    with pytest.raises(InputError, match=f'^a download failed, of {url}: .*refused'):
        with downloading(model, load_from=None):
            load_checkpoint(nn.Linear(1, 1), url)


class Net(nn.Module):
    def __init__(self, channels: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.bn = nn.BatchNorm2d(channels)


class Loader(Runner):
    """What a Runner needs to load a checkpoint."""

    def __init__(self, model: nn.Module):
        self.model, self._hooks = model, []
        self.logger = SimpleNamespace(info=print)


@pytest.fixture
def load(tmp_path):
    """Loads a state dict into a Net as a Runner does, with nothing dropped."""

    def run(state: dict) -> Net:
        torch.save({'state_dict': state}, tmp_path / 'a.pth')
        runner = Loader(Net())
        load_strictly(runner)
        runner.load_checkpoint(str(tmp_path / 'a.pth'))
        return runner.model

    return run


def test_matching_weights_are_loaded(load):
    state = {f'module.{key}': value for key, value in Net().state_dict().items()}
    del state['module.bn.num_batches_tracked']
    assert torch.equal(load(state).conv.weight, state['module.conv.weight'])


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda state: state.pop('bn.weight'), r'1 missing \(bn.weight\)'),
        (lambda state: state.update({'bn.mean_weight': 1}), r'1 unexpected \(bn.mean_weight\)'),
        (
            lambda state: state.update(Net(8).state_dict()),
            r'6 of another shape \(conv.weight',
        ),
        (lambda state: state.clear() or state.update(x=torch.ones(1)), r'6 missing'),
    ],
    ids=['missing', 'unexpected', 'shape', 'nothing in common'],
)
def test_a_weight_without_its_place_is_refused(load, change, said):
    state = Net().state_dict()
    change(state)
    with pytest.raises(InputError, match=f'does not fit the model: .*{said}'):
        load(state)


def test_a_checkpoint_of_batch_norm_is_called_that(tmp_path):
    torch.save({'state_dict': Net().state_dict()}, tmp_path / 'a.pth')
    runner = Loader(convert_switch_norm(Net()))
    load_strictly(runner)
    said = "it holds BatchNorm's weights, without the importance of 1 SN layers; to train from it,"
    with pytest.raises(InputError, match=f'a.pth does not fit the model: {said} .*load_from='):
        runner.load_checkpoint(str(tmp_path / 'a.pth'))


def test_components_that_the_model_does_not_have_are_left_out_and_reported(load, monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint, 'print_log', lambda text, *_: said.append(text))
    load({**Net().state_dict(), 'auxiliary_head.weight': torch.ones(1), 'ema_conv': torch.ones(1)})
    assert said == ['Left out 2 weights of auxiliary_head, ema_conv: not in the model.']
