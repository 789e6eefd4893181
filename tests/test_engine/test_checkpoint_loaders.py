"""MMEngine's loads of checkpoints, by its own calls."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint

from sn_mm.cli.checkpoint import check_pretrained
from sn_mm.engine.checkpoint_loaders import load_from_local, load_from_torchvision, torchvision_url
from sn_mm.errors import InputError


class Mine:
    """A class of somebody's own."""


def test_paths_and_torchvision_s_names_have_loaders_of_ours():
    loaders = {
        'a.pth': load_from_local,
        '/a/b.pth': load_from_local,
        'https://host/a.pth': checkpoint.load_from_http,
        's3://a/b.pth': checkpoint.load_from_ceph,
        'mine:s3://a/b.pth': checkpoint.load_from_ceph,
        'torchvision://resnet50': load_from_torchvision,
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


@pytest.fixture(params=['missing', 'of another torch', 'there'])
def torchvision(request, tmp_path, monkeypatch) -> str:
    if request.param == 'there':
        pytest.importorskip('torchvision')
        return request.param
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    if request.param == 'of another torch':
        monkeypatch.delitem(sys.modules, 'torchvision')
        monkeypatch.syspath_prepend(tmp_path / 'site')
        (tmp_path / 'site').mkdir()
        raises = "raise RuntimeError('operator torchvision::nms does not exist')"
        (tmp_path / 'site/torchvision.py').write_text(raises)
    return request.param


def test_weights_of_torchvision_load_with_and_without_it(tmp_path, monkeypatch, torchvision):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    url = torchvision_url('torchvision://resnet50')
    file = tmp_path / 'hub/checkpoints' / url.rpartition('/')[2]  # as if it was downloaded before
    file.parent.mkdir(parents=True)
    torch.save({'a': torch.ones(2)}, file)
    model = {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}}
    check_pretrained(model)
    assert CheckpointLoader.load_checkpoint('torchvision://resnet50')['a'].sum() == 2


def test_names_that_torchvision_alone_knows_need_it(torchvision):
    model = {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50.default'}}
    if torchvision == 'there':
        check_pretrained(model)
        return
    with pytest.raises(InputError, match='needs torchvision, which is not installed or not for'):
        check_pretrained(model)
    with pytest.raises((ImportError, RuntimeError)):
        CheckpointLoader.load_checkpoint('torchvision://resnet50.default')


def checkpoint_read_by_torch(folder: Path) -> object:
    torch.save({'log': HistoryBuffer([1.5], [1]), 'mine': Mine()}, folder / 'a.pth')
    try:
        return torch.load(folder / 'a.pth')['mine']
    except pickle.UnpicklingError:
        return None
