"""``import sn_mm`` changes nothing for others' ``torch.load``, as docs/use/checkpoints.md says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sn_mm.engine.safe_globals import safe_globals

ROOT = Path(__file__).parents[2]
# torch keeps one object a name out of a set, so that a second one of a name is a lottery.
OTHERS = """
import pickle, numpy as np, torch, torch._dynamo  # which adds one of torch's own classes
from torch import serialization
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
listed = lambda: set(serialization.get_safe_globals())
before = listed()
import sn_mm
assert listed() == before
layer = sn_mm.SwitchNorm2d(3)
torch.save({'state_dict': layer.state_dict(), 'log': HistoryBuffer([1.5], [1])}, 'own.pth')
assert load_checkpoint(layer, 'own.pth')['log'].mean() == 1.5
assert listed() == before
torch.save(np.random.get_state(), 'random.pth')
numpys = np.zeros(1).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype('u4'))
with serialization.safe_globals(numpys):
    assert type(torch.load('random.pth', weights_only=True)[1]) is np.ndarray
try:
    torch.load('own.pth', weights_only=True)
except pickle.UnpicklingError:
    print('as without sn_mm')
"""


has_list = pytest.mark.skipif(
    not hasattr(torch.serialization, 'safe_globals'), reason='torch < 2.5 has no such list'
)


@has_list
def test_nothing_that_a_checkpoint_may_name_is_on_the_list_of_torch():
    listed = [x[0] if isinstance(x, tuple) else x for x in torch.serialization.get_safe_globals()]
    assert not [kind for kind in safe_globals().values() if kind in listed]


@has_list
@pytest.mark.slow
def test_an_import_leaves_torch_load_to_others(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    seeds = [
        subprocess.Popen(
            [sys.executable, '-c', OTHERS],
            cwd=folder,
            env={**environment, 'PYTHONHASHSEED': folder.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in map(tmp_path.joinpath, '012')
        if not folder.mkdir()
    ]
    for done in seeds:
        said, wrong = done.communicate()
        assert said.endswith('as without sn_mm\n'), wrong


def test_the_page_names_exactly_what_a_checkpoint_may_name():
    page = (ROOT / 'docs/use/checkpoints.md').read_text(encoding='utf-8')
    table = page.partition('### What a checkpoint may name')[2]
    documented = set(re.findall(r'^\| `([^`]+)` \|', table, re.MULTILINE))
    assert documented == safe_globals().keys()
