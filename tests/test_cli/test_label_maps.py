"""Label maps that MMSegmentation would train on to nothing, or meet in the middle of a run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('mmseg')

from mmengine.registry import init_default_scope
from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset
from mmseg.models import FCNHead
from torch import nn

from sn_mm.cli.label_maps import check_label_maps
from sn_mm.errors import InputError

LOAD = [{'type': 'mmseg.LoadAnnotations'}]
ROAD = {'classes': ('ground', 'road')}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(folder: str, *label_maps: object, name: str = '{}.png') -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, label_map in enumerate(label_maps):
        cv2.imwrite(f'{folder}/{name.format(number)}', np.array(label_map, np.uint8))


def write_ade(*label_maps: object) -> None:
    """As ADEChallengeData2016: images/training/0.jpg, annotations/training/0.png."""
    write('images/training', *[np.zeros((2, 2, 3))] * len(label_maps), name='{}.jpg')
    write('annotations/training', *label_maps)


def ade(kind: type = BaseSegDataset, pipeline: list = LOAD, **more: object) -> BaseSegDataset:
    prefix = {'img_path': 'images/training', 'seg_map_path': 'annotations/training'}
    return kind(data_prefix=prefix, pipeline=pipeline, **more)


def check(
    dataset: BaseSegDataset,
    said: str | None = None,
    training: bool = True,
    model: nn.Module | None = None,
) -> None:
    given = 'data', dataset, model or nn.Identity(), training
    if said is None:
        check_label_maps(*given)
        return
    with pytest.raises(InputError) as refusal:
        check_label_maps(*given)
    assert said in str(refusal.value)


def test_right_label_maps_pass():
    write_ade([[0, 1], [255, 1]], [[0, 0], [0, 0]])
    check(ade(metainfo=ROAD))
    write_ade([[0, 1], [150, 255]])
    check(ade(ADE20KDataset))
    write('leftImg8bit/a', np.zeros((2, 2, 3)), name='{}_leftImg8bit.png')
    write('gtFine/a', [[0, 18], [255, 3]], name='{}_gtFine_labelTrainIds.png')
    prefix = {'img_path': 'leftImg8bit', 'seg_map_path': 'gtFine'}
    check(CityscapesDataset(data_prefix=prefix, pipeline=LOAD))


def test_masks_of_0_and_255_are_of_one_class():
    write_ade(*[[[0, 255], [0, 255]]] * 3)
    check(
        ade(metainfo=ROAD),
        'data: the 3 label maps that were read hold class 0 (ground) alone, and 255, which is '
        'ignored; the 2 classes are written as 0 to 1',
    )
    check(ade(metainfo=ROAD), training=False)  # the pictures to test on may be of one class


def test_a_class_that_is_in_few_pictures_is_looked_for_in_many():
    empty, rare = np.zeros((2, 2)), [[0, 0], [0, 1]]
    write_ade(*[empty] * 20, rare, *[empty] * 20)
    check(ade(metainfo=ROAD))
    write_ade(*[empty] * 41)
    check(ade(metainfo=ROAD), 'the 41 label maps that were read hold class 0 (ground) alone;')


def test_label_maps_that_are_ignored_throughout_hold_no_class():
    write_ade(np.full((2, 2), 255))
    for training in (True, False):
        check(ade(metainfo=ROAD), 'hold no class, and 255, which is ignored', training)


def test_a_label_of_no_class_is_named():
    write_ade([[0, 1], [2, 7]])
    check(
        ade(metainfo=ROAD),
        "data: the label map 'annotations/training/0.png' has the labels 2, 7; its 2 classes are "
        '0 to 1, and 255 is ignored',
    )


def test_a_label_that_the_head_ignores_is_none_of_a_class():
    init_default_scope('mmseg')
    write_ade([[0, 1], [11, 1]])
    head = FCNHead(in_channels=4, channels=4, num_classes=2, ignore_index=11)
    check(ade(metainfo=ROAD), model=nn.Sequential(head))
    check(ade(metainfo=ROAD), 'has the labels 11;')
    write_ade([[0, 11], [11, 0]])
    said = 'hold class 0 (ground) alone, and 11, which is ignored; the 2 classes'
    check(ade(metainfo=ROAD), said, model=nn.Sequential(head))


def test_what_reduce_zero_label_makes_of_the_labels_is_said():
    write_ade([[0, 1], [0, 1]])
    reduced = {'reduce_zero_label': True, 'metainfo': ROAD}
    check(ade(**reduced), 'reduce_zero_label ignores 0 and takes 1 from the others; the 2 classes')
    check(ade(**reduced), 'are written as 0 to 2')
    write_ade([[1, 2], [4, 0]])
    check(ade(**reduced), 'has the labels 3; its 2 classes are 0 to 1, and 255 is ignored (with')


def test_data_set_and_pipeline_agree_about_reduce_zero_label():
    write_ade([[0, 1], [0, 1]])
    pipeline = [{'type': 'mmseg.LoadAnnotations', 'reduce_zero_label': True}]
    with pytest.warns(UserWarning, match='reduce_zero_label'):
        dataset = ade(pipeline=pipeline, metainfo=ROAD)
    check(dataset, 'data.reduce_zero_label is False, and LoadAnnotations in its pipeline has True')


def test_colours_are_refused():
    write_ade(np.zeros((2, 2, 3)))
    check(ade(metainfo=ROAD), "'annotations/training/0.png' has 3 channels; it must have one")


def test_labels_beyond_8_bits_are_refused():
    """MMSegmentation takes their last 8 bits: here class 0 and class 1."""
    write_ade([[0, 1]])
    cv2.imwrite('annotations/training/0.png', np.array([[0, 1], [256, 257]], np.uint16))
    assert ade(metainfo=ROAD)[0]['gt_seg_map'].tolist() == [[0, 1], [0, 1]]
    check(ade(metainfo=ROAD), "'annotations/training/0.png' has labels up to 257; MMSegmentation")
    cv2.imwrite('annotations/training/0.png', np.array([[0, 1], [1, 255]], np.uint16))
    check(ade(metainfo=ROAD))


def test_a_file_that_is_no_image_is_refused():
    write_ade([[0, 1]])
    Path('annotations/training/0.png').write_text('git-lfs')
    check(ade(metainfo=ROAD), "'annotations/training/0.png' is not an image that can be read: ")


def test_an_image_without_a_label_map_is_named():
    write_ade(*[[[0, 1]]] * 20)
    Path('annotations/training/9.png').unlink()
    check(
        ade(metainfo=ROAD),
        "data: 1 of 20 images have no label map, 'images/training/9.jpg' no "
        "'annotations/training/9.png'",
    )
    suffix = "; seg_map_suffix='_gt.png', and the files there end in '.png', such as '0.png'"
    check(ade(metainfo=ROAD, seg_map_suffix='_gt.png'), suffix)


def test_a_data_set_that_names_no_label_maps_is_told_its_setting():
    write_ade([[0, 1]])
    dataset = BaseSegDataset(
        data_prefix={'img_path': 'images/training'}, pipeline=LOAD, metainfo=ROAD
    )
    check(dataset, 'data.data_prefix names no seg_map_path, which its LoadAnnotations reads')


def test_other_data_sets_are_left_alone():
    write_ade([[0, 7]])
    Path('train.txt').write_text('0')
    away = {'img_path': 'images/training', 'seg_map_path': 's3://bucket'}
    check(BaseSegDataset('train.txt', data_prefix=away, pipeline=LOAD, metainfo=ROAD))
    check(ade(pipeline=[], metainfo=ROAD))
    check(ade(metainfo=ROAD, backend_args={'backend': 'local'}))
    check(['a list'])
