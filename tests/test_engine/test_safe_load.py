"""The restricted unpickler: it reads a checkpoint whole, and runs nothing of it."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from sn_mm import SwitchNorm2d
from sn_mm.engine.safe_load import safe_load


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_checkpoint_is_read_whole(zipped):
    layer = SwitchNorm2d(3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(2, 3, 4, 5)).square().sum().backward()
    optimizer.step()
    history = HistoryBuffer([1.5, 2.5], [1, 2])
    saved = {
        'state_dict': layer.state_dict(),
        'half': torch.randn(3, 4, dtype=torch.bfloat16)[1:].t(),
        'flags': torch.tensor([True, False]),
        'parameter': torch.nn.Parameter(torch.ones(2)),
        'optimizer': optimizer.state_dict(),
        'message_hub': {'loss': history, 'best': np.float64(0.5), 'iter': np.int64(7)},
        'meta': OrderedDict(seed=None, counts=Counter('aab'), size=torch.Size([2]), more={1, 2}),
    }
    torch.save(saved, 'a.pth', _use_new_zipfile_serialization=zipped)
    loaded = safe_load(Path('a.pth'))
    assert loaded.keys() == saved.keys() and loaded['meta'] == saved['meta']
    read = loaded['message_hub'].pop('loss')
    assert read.mean() == history.mean() and read.statistics('max') == 2.5
    assert loaded['message_hub'] == {'best': 0.5, 'iter': 7}
    for key in ('state_dict', 'half', 'flags', 'parameter', 'optimizer'):
        torch.testing.assert_close(loaded[key], saved[key], rtol=0, atol=0)


RUN = b"(S'touch run'\nt"
HOSTILE = {
    'global and reduce': b'cposix\nsystem\n' + RUN + b'R.',
    'inst': b"(S'touch run'\niposix\nsystem\n.",
    'obj': b"(cposix\nsystem\nS'touch run'\no.",
    'stack global': b'\x80\x04\x8c\x05posix\x8c\x06system\x93' + RUN + b'R.',
    'eval': b"c__builtin__\neval\n(S\"open('run', 'w')\"\ntR.",
    'getattr of a module': b'c__builtin__\ngetattr\n(ctorch\nTensor\nX\x05\x00\x00\x00applytR.',
    'state of a class': b'ctorch\nTensor\n(N}X\x01\x00\x00\x00aX\x01\x00\x00\x00bstb.',
    'state of a function': b'c_codecs\nencode\n}b.',
    'class of sparse tensors': b'ctorch.sparse\nFloatTensor\n)R.',
    'what a call gave is called': b'ccollections\nOrderedDict\n)R)R.',
    'a new object of another class': b'ccollections\nOrderedDict\n)R)\x81.',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_nothing_else_is_named_called_made_or_changed(name):
    Path('a.pth').write_bytes(HOSTILE[name])
    before = dict(vars(torch.Tensor))
    with pytest.raises((pickle.UnpicklingError, KeyError)):
        safe_load(Path('a.pth'))
    assert not Path('run').exists() and dict(vars(torch.Tensor)) == before


@pytest.mark.parametrize('name', ['global and reduce', 'inst', 'obj', 'stack global', 'eval'])
def test_these_files_would_run_something(name):
    pickle.loads(HOSTILE[name])
    assert Path('run').exists()


def test_code_of_torchscript_is_refused():
    torch.jit.script(torch.nn.Linear(2, 2)).save('a.pth')
    archive = Path('a.pth').read_bytes()
    Path('b.pth').write_bytes(archive + bytes(69_000))  # a zip to torch, and none to Python
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        safe_load(Path('b.pth'))
    with pytest.raises(pickle.UnpicklingError, match='TorchScript'):
        safe_load(Path('a.pth'))


class Mine:
    """A class that the process allows."""


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'safe_globals'), reason='torch < 2.5 has no such list'
)
def test_what_the_process_allows_is_taken_beside_a_log_history():
    torch.save({'log': HistoryBuffer([1.5], [1]), 'mine': Mine()}, 'a.pth')
    with pytest.raises(pickle.UnpicklingError, match='Mine'):
        safe_load(Path('a.pth'))
    with torch.serialization.safe_globals([Mine]):
        assert type(safe_load(Path('a.pth'))['mine']) is Mine


def test_where_torch_is_told_to_take_weights_only_its_own_unpickler_reads(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    torch.save({'a': torch.ones(2)}, 'a.pth')
    assert safe_load(Path('a.pth'))['a'].tolist() == [1, 1]
    torch.save({'log': HistoryBuffer([1.5], [1])}, 'b.pth')
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        safe_load(Path('b.pth'))
