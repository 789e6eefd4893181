"""What is missing from a data set is named before anything is built."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from sn_mm.cli.annotations import classes_of
from sn_mm.cli.config import read_config
from sn_mm.cli.data import _check_classes, _check_first_image, check_data
from sn_mm.errors import InputError
from sn_mm.switch.components import resolve

LOAD = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]


@pytest.fixture
def coco(tmp_path):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'train.json').write_text('{}')
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / '0.png').write_text('')
    (tmp_path / 'empty').mkdir()
    return {
        'data_root': f'{tmp_path}/',
        'ann_file': 'annotations/train.json',
        'data_prefix': {'img': 'train/'},
        'pipeline': LOAD,
    }


def check(dataset, split='train', **more):
    check_data(Config({f'{split}_dataloader': {'dataset': dataset}, **more}), [split])


def test_a_complete_data_set_passes(coco):
    check(coco)
    check({**coco, 'data_root': None, 'ann_file': '', 'data_prefix': {'img': coco['data_root']}})


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'ann_file': 'annotations/val.json'}, r'ann_file: .*annotations/val.json. does not exist'),
        ({'data_prefix': {'img': 'val/'}}, r'data_prefix.img: .*/val/. does not exist'),
        ({'data_prefix': {'img_path': 'empty'}}, r'data_prefix.img_path: .*/empty. is empty'),
        ({'data_prefix': {'seg_map_path': 'val/'}}, r'data_prefix.seg_map_path'),
        ({'data_root': '/none/'}, r"data_root='/none/'"),
    ],
)
def test_what_is_missing_is_named_with_its_key(coco, change, said):
    with pytest.raises(InputError, match=rf'train_dataloader\.dataset\..*{said}'):
        check({**coco, **change})


def test_nested_data_sets_are_looked_into(coco):
    concat = {'type': 'ConcatDataset', 'datasets': [coco, {**coco, 'ann_file': 'none.json'}]}
    with pytest.raises(InputError, match=r'val_dataloader.dataset.dataset.datasets.1.ann_file'):
        check({'type': 'RepeatDataset', 'dataset': concat}, split='val')


def test_a_metric_with_its_own_annotations_is_looked_at(coco):
    evaluator = [{'type': 'DumpResults'}, {'type': 'CocoMetric', 'ann_file': '/none.json'}]
    with pytest.raises(InputError, match=r"val_evaluator\.ann_file: '/none.json' does not exist"):
        check(coco, split='val', val_evaluator=evaluator)


def test_what_is_not_read_from_this_disk_or_not_read_at_all_is_left_alone(coco):
    away = {'data_prefix': {'img': 'none/'}}
    check({**coco, **away, 'backend_args': {'backend': 'petrel'}})
    check({**coco, **away, 'data_root': 's3://bucket/', 'ann_file': 'a.json'})
    check({**coco, 'data_prefix': {'seg_map_path': 'none/'}, 'pipeline': LOAD[:1]})
    check_data(Config({'train_dataloader': None, 'val_dataloader': None}), ['train', 'val'])


def test_the_classes_of_a_data_set_are_those_of_its_class_where_it_names_none():
    pytest.importorskip('mmdet')
    dataset = {'type': 'CocoDataset'}
    kind = resolve('CocoDataset', 'mmdet', DATASETS)
    assert len(classes_of(dataset, kind)) == 80
    assert classes_of({**dataset, 'metainfo': {'classes': ('nucleus',)}}, kind) == ('nucleus',)
    assert resolve('Nope', 'mmdet', DATASETS) is None


HEADS = {
    'mmdet': {
        'retinanet/retinanet_r18_fpn_1x_coco.py': 'bbox_head',
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': 'roi_head.bbox_head',
        'detr/detr_r18_8xb2-500e_coco.py': 'bbox_head',
        'yolox/yolox_tiny_8xb8-300e_coco.py': 'bbox_head',
    },
    'mmseg': {
        'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py': 'decode_head',
        'stdc/stdc1_4xb12-80k_cityscapes-512x1024.py': 'decode_head',
    },
}


@pytest.mark.parametrize(
    ('package', 'name', 'head'),
    [(package, name, head) for package, heads in HEADS.items() for name, head in heads.items()],
)
def test_heads_have_the_classes_of_the_data_set(package, name, head):
    pytest.importorskip(package)
    cfg = read_config(f'{package}::{name}')
    with DefaultScope.overwrite_default_scope(package):
        model = MODELS.build(cfg.model)
    runner = SimpleNamespace(cfg=cfg, model=model)
    count = {'mmdet': 80, 'mmseg': 19}[package]
    dataset = SimpleNamespace(metainfo={'classes': tuple(map(str, range(count)))})
    _check_classes(runner, 'train', 'data', dataset)
    dataset.metainfo['classes'] = 'a', 'b', 'c'
    said = rf'^model\.{head}\.num_classes={count}, and data has 3 classes$'
    with pytest.raises(InputError, match=said):
        _check_classes(runner, 'train', 'data', dataset)


def test_a_list_of_images_with_another_suffix_is_told_its_setting(tmp_path):
    datasets = pytest.importorskip('mmseg.datasets')
    (tmp_path / 'train.txt').write_text('0\n')
    (tmp_path / '0.png').touch()
    load = [{'type': 'mmcv.LoadImageFromFile'}]
    prefix = {'img_path': str(tmp_path)}
    dataset = datasets.BaseSegDataset(
        ann_file=str(tmp_path / 'train.txt'), data_prefix=prefix, pipeline=load
    )
    said = r"^data: its first image, '.*/0\.jpg', does not exist, 0\.png does: set img_suffix$"
    with pytest.raises(InputError, match=said):
        _check_first_image('data', dataset)
