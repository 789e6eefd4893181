"""tools/check_resume.py: it sees what it is to see, and a run of it with one kill."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from small_runs import LIMIT, ROOT, TOOLS, run

from resume.kills import Record, compare, find_damaged
from resume.training import Training


def training(folder: Path, weight: float) -> Training:
    folder.mkdir()
    parts = {'state_dict': {'weight': torch.tensor([weight])}, 'optimizer': {}}
    parts['param_schedulers'] = [{'last_step': 3}]
    torch.save(parts, folder / 'iter_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_1.pth'))
    return Training(folder / 'config.py', folder, 1)


def test_one_bit_of_one_weight_is_a_fault(tmp_path: Path) -> None:
    one, same = (training(tmp_path / name, 1.0) for name in ('one', 'same'))
    other = training(tmp_path / 'other', 1.0 + 2.0**-23)
    record = Record('model', 1)
    compare(one, same, record)
    assert record.faults == [] and record.row().endswith('| 1 | 2 tensors equal |')
    compare(one, other, record)
    assert len(record.faults) == 1 and '(state_dict.weight, ...)' in record.row()


def test_half_a_checkpoint_is_a_fault(tmp_path: Path) -> None:
    killed = training(tmp_path / 'killed', 1.0)
    assert find_damaged(killed) == []
    file = killed.work_dir / 'iter_1.pth'
    file.write_bytes(file.read_bytes()[:-100])
    assert len(find_damaged(killed)) == 1


@pytest.mark.slow
@pytest.mark.every_command
@pytest.mark.skipif(find_spec('mmseg') is None, reason='needs mmseg')
@pytest.mark.timeout(2 * LIMIT)
def test_a_segmentor_is_killed_while_it_saves_and_ends_as_if_undisturbed(tmp_path: Path) -> None:
    options = ('--kills', 2, '--processes', 1, '--work-dir', tmp_path)
    code, out, error = run(
        tmp_path, sys.executable, TOOLS / 'check_resume.py', *options, PYTHONPATH=str(ROOT)
    )
    assert code == 0, (out + error)[-3000:]
    assert 'kill 2, writing' in out and out.splitlines()[-1].endswith(' tensors equal |')
