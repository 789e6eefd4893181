"""``sn-mm make-nuclei``: windows of a labelled picture, in COCO's layout."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sn_mm.cli import make_nuclei
from sn_mm_cli.main import main

coco_mask = pytest.importorskip('pycocotools.mask')


@pytest.fixture
def stardist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A package with a picture of 512 x 512 pixels and 64 labelled squares; gives the labels."""
    labels = np.zeros((512, 512), np.uint16)
    for number in range(64):
        top, left = 64 * (number // 8) + 20, 64 * (number % 8) + 20
        labels[top : top + 24, left : left + 24] = number + 1
    images = tmp_path / 'packages/stardist/data/images'
    images.mkdir(parents=True)
    (tmp_path / 'packages/stardist/__init__.py').touch()
    cv2.imwrite(str(images / 'mask2d.tif'), labels)
    cv2.imwrite(str(images / 'img2d.tif'), (labels > 0).astype(np.uint16) * 200)
    monkeypatch.syspath_prepend(tmp_path / 'packages')
    return labels


def read(root: Path, split: str) -> dict:
    return json.loads((root / f'coco/annotations/instances_{split}2017.json').read_text())


def test_boxes_and_masks_lie_where_the_picture_is_bright(stardist, tmp_path, capsys):
    main(['make-nuclei', str(tmp_path), '--train', '12'])
    assert '12 train and 10 val images' in capsys.readouterr().out
    for split in ('train', 'val'):
        content = read(tmp_path, split)
        assert [kind['name'] for kind in content['categories']] == ['nucleus']
        for image in content['images']:
            picture = cv2.imread(str(tmp_path / f'coco/{split}2017' / image['file_name']), 0)
            found = np.zeros(picture.shape, bool)
            for annotation in content['annotations']:
                if annotation['image_id'] == image['id']:
                    polygons = coco_mask.frPyObjects(annotation['segmentation'], *picture.shape)
                    mask = coco_mask.decode(coco_mask.merge(polygons)) > 0
                    assert mask.sum() == annotation['area'] >= make_nuclei.SMALLEST
                    assert not found[mask].any()
                    found |= mask
            assert (picture[found] > 100).mean() > 0.98  # JPEG blurs the edges


def test_training_and_validation_share_no_pixel(stardist, tmp_path):
    halves = np.full((512, 512), 50, np.uint16)
    halves[:, make_nuclei.BORDER :] = 200
    cv2.imwrite(str(tmp_path / 'packages/stardist/data/images/img2d.tif'), halves)
    main(['make-nuclei', str(tmp_path), '--train', '60'])
    for split, grey in (('train', 50), ('val', 200)):
        files = list((tmp_path / f'coco/{split}2017').iterdir())
        assert len(files) == {'train': 60, 'val': 10}[split]
        for file in files:
            assert (abs(cv2.imread(str(file), 0).astype(int) - grey) < 5).all()


@pytest.mark.parametrize('turn', range(8))
def test_a_turned_window_turns_its_labels(stardist, turn):
    picture = (stardist > 0).astype(np.uint8) * 200
    scene = make_nuclei.window(picture, stardist, 3, 5, turn)
    assert ((scene.image[..., 0] == 200) == (scene.instance > 0)).mean() > 0.99


@pytest.mark.skipif(importlib.util.find_spec('stardist') is not None, reason='stardist is there')
def test_a_missing_package_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(['make-nuclei', str(tmp_path)])
    assert 'the package stardist is needed for its data' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [(['--train', '0'], '--train: a whole number of at least 1'), ([], 'coco exists: move it')],
)
def test_bad_input_is_one_line(stardist, tmp_path, capsys, arguments, said):
    if not arguments:
        (tmp_path / 'coco').mkdir()
    with pytest.raises(SystemExit) as stop:
        main(['make-nuclei', str(tmp_path), *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert 'stardist' not in sys.modules
