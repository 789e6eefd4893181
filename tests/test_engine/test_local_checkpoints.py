"""MMEngine's loads of local files, with torch's and MMEngine's own calls."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint

from sn_mm.engine.local_checkpoints import load_from_local


class Mine:
    """A class of somebody's own."""


def test_paths_alone_have_the_loader():
    loaders = {
        'a.pth': load_from_local,
        '/a/b.pth': load_from_local,
        'https://host/a.pth': checkpoint.load_from_http,
        's3://a/b.pth': checkpoint.load_from_ceph,
        'mine:s3://a/b.pth': checkpoint.load_from_ceph,
        'torchvision://resnet50': checkpoint.load_from_torchvision,
        'open-mmlab://resnet50': checkpoint.load_from_openmmlab,
    }
    found = {path: CheckpointLoader._get_checkpoint_loader(path) for path in loaders}
    assert found == loaders


@pytest.mark.parametrize('zipped', [True, False])
def test_a_log_history_is_loaded_to_the_device_and_the_file_may_be_written_anew(tmp_path, zipped):
    path = tmp_path / 'a.pth'
    content = {'weight': torch.ones(1000), 'log': HistoryBuffer([1.5], [1])}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    moved = CheckpointLoader.load_checkpoint(str(path), map_location='meta')
    assert moved['weight'].is_meta and moved['log'].mean() == 1.5
    loaded = CheckpointLoader.load_checkpoint(str(path))
    path.write_bytes(bytes(path.stat().st_size))
    assert loaded['weight'].sum() == 1000


def test_what_somebody_lets_mmengine_load_is_loaded_as_before(tmp_path, monkeypatch):
    path = str(tmp_path / 'a.pth')
    torch.save({'mine': Mine(), 'weight': torch.ones(2)}, path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    assert type(CheckpointLoader.load_checkpoint(path)['mine']) is Mine


def test_a_file_that_is_not_there_is_mmengine_s_to_report():
    with pytest.raises(FileNotFoundError, match='can not be found'):
        CheckpointLoader.load_checkpoint(str(Path('nowhere') / 'a.pth'))


def test_a_refusal_names_what_is_at_fault_and_not_the_log_history(tmp_path):
    if isinstance(checkpoint_read_by_torch(tmp_path), Mine):
        pytest.skip('torch < 2.6 loads anything')
    with pytest.raises(pickle.UnpicklingError, match=r'not allowed: GLOBAL \S+Mine'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))


def checkpoint_read_by_torch(folder: Path) -> object:
    torch.save({'log': HistoryBuffer([1.5], [1]), 'mine': Mine()}, folder / 'a.pth')
    try:
        return torch.load(folder / 'a.pth')['mine']
    except pickle.UnpicklingError:
        return None
