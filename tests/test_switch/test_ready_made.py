"""Ready-made configs of MMDetection and MMSegmentation, switched and built."""

from __future__ import annotations

import pytest
import torch
from ready_made import build, dump_and_load, load, norms, types

import sn_mm
from sn_mm import SwitchNorm, SwitchNorm1d
from sn_mm.switch import convert_unconverted, find_unconverted

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

CITYSCAPES = '160k_cityscapes-1024x1024.py'
# Config, its norms, how many of them no config reaches.
CONFIGS = {
    'defaults of HRNet': ('mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py', 305, 0),
    'defaults of YOLOv3': ('mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', 72, 0),
    'default of a head': ('mmdet::tood/tood_r50_fpn_1x_coco.py', 61, 0),
    'hard-coded DyHead': ('mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py', 71, 18),
    'hard-coded BiSeNet': (f'mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-{CITYSCAPES}', 36, 13),
    'one-dimensional codes': (
        'mmseg::encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        59,
        0,
    ),  # fmt: skip
    'blocks with defaults': (
        'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py',
        24,
        0,
    ),  # fmt: skip
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_no_norm_is_left(name):
    config, count, hard_coded = CONFIGS[name]
    cfg = load(config)
    sn_mm.switch_norm_cfg(cfg)
    model = build(cfg)
    assert len(find_unconverted(model)) == hard_coded
    convert_unconverted(model, dict(type='SN'))
    assert not find_unconverted(model)
    assert sum(isinstance(module, SwitchNorm) for module in model.modules()) == count


def test_the_codes_of_encnet_get_the_layer_for_one_dimension():
    cfg = load('mmseg::encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    sn_mm.switch_norm_cfg(cfg)
    cfg.model.backbone.depth = 18
    cfg.model.decode_head.update(in_channels=(128, 256, 512))
    cfg.model.auxiliary_head.in_channels = 256
    head = build(cfg).decode_head
    assert any(isinstance(module, SwitchNorm1d) for module in head.modules())


HEADS = {
    'atss/atss_r50_fpn_1x_coco.py': 5,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': 5,
    'gfl/gfl_r50_fpn_1x_coco.py': 5,
    'retinanet/retinanet_r50_fpn_1x_coco.py': 5,
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 3,
    'yolof/yolof_r50-c5_8xb8-1x_coco.py': 1,
    'yolox/yolox_tiny_8xb8-300e_coco.py': 3,
}


@pytest.mark.parametrize('config', HEADS)
def test_a_layer_that_meets_several_levels_leaves_out_the_batch_and_no_other(config):
    cfg = load(f'mmdet::{config}')
    sn_mm.switch_norm_cfg(cfg, extent='all')
    for key in ('train_cfg', 'test_cfg'):
        cfg.model[key] = None
    head = build(cfg).bbox_head
    layers = [module for module in head.modules() if isinstance(module, SwitchNorm)]
    sizes = {layer: set() for layer in layers}
    for layer in layers:
        layer.register_forward_hook(lambda layer, x, y: sizes[layer].add(y.shape))
    channels = head.in_channels
    head(tuple(torch.randn(1, channels, 2**n, 2**n) for n in range(HEADS[config], 0, -1)))
    assert layers and all(sizes.values())
    assert all((len(met) > 1) == ('bn' not in layer.normalizers) for layer, met in sizes.items())


def test_a_head_of_shared_weights_is_known_by_its_class():
    shared = {'model.bbox_head.norm_cfg'}
    for config, expected in {
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': shared,
        'mmdet::gfl/gfl_r50_fpn_1x_coco.py': shared,
        'mmdet::solo/solo_r50_fpn_1x_coco.py': {'model.mask_head.norm_cfg'},
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py': set(),
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': set(),
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': set(),
    }.items():
        report = sn_mm.switch_norm_cfg(load(config))
        assert {e.path for e in report.switched if 'normalizers' in e.new} == expected, config


def test_all_gives_the_heads_of_the_paper_to_a_cascade():
    cfg = load('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py')
    report = sn_mm.switch_norm_cfg(cfg, extent='all')
    heads = [f'model.roi_head.bbox_head.{stage}' for stage in range(3)]
    paths = ['model.backbone', 'model.neck', *heads, 'model.roi_head.mask_head']
    assert types(cfg.model) == {f'{path}.norm_cfg': 'SN' for path in paths}
    for head in cfg.model.roi_head.bbox_head:
        assert (head.type, head.conv_out_channels) == ('Shared4Conv1FCBBoxHead', 256)
    changed = [entry for entry in report.switched if entry.path == f'{heads[0]}.type']
    assert changed[0].old == 'Shared2FCBBoxHead'
    model = build(cfg)
    for part, count in ((model.neck, 8), (model.roi_head, 3 * 4 + 3 * 4)):
        assert sum(isinstance(module, SwitchNorm) for module in part.modules()) == count


def test_all_says_where_a_component_has_no_use_for_a_norm():
    cfg = load('mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py')
    report = sn_mm.switch_norm_cfg(cfg, extent='all')
    assert [(left.path, left.reason) for left in report.left] == [
        ('model.neck', 'HRFPN makes no use of a norm')
    ]


def test_all_says_where_a_head_has_no_convolutions():
    cfg = load('mmdet::scnet/scnet_r50_fpn_1x_coco.py')
    report = sn_mm.switch_norm_cfg(cfg, extent='all')
    left = {entry.path: entry.reason for entry in report.left}
    assert 'no convolutions' in left['model.roi_head.bbox_head.0']
    assert cfg.model.roi_head.mask_head.norm_cfg.type == 'SN'


def test_all_leaves_out_the_batch_where_a_head_without_norm_serves_all_levels():
    cfg = load('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    sn_mm.switch_norm_cfg(cfg, extent='all')
    assert cfg.model.bbox_head.norm_cfg == dict(type='SN', normalizers=['in', 'ln'])
    assert cfg.model.neck.norm_cfg == dict(type='SN')


def test_the_norms_of_a_teacher_stay(tmp_path):
    cfg = load('mmdet::lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py')
    report = sn_mm.switch_norm_cfg(cfg)
    assert {entry.path for entry in report.left} == {
        'model.teacher_backbone.norm_cfg', 'model.teacher_bbox_head.norm_cfg',
    }  # fmt: skip
    model = build(dump_and_load(cfg, tmp_path))
    assert not find_unconverted(model)
    assert find_unconverted(model.teacher_model) and 'bn' not in norms(model.bbox_head)


SEMI = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'


def syncs(part: torch.nn.Module) -> set[bool | int]:
    return {module.sync for module in part.modules() if isinstance(module, SwitchNorm)}


def test_the_teacher_that_a_rank_may_pass_by_is_local(tmp_path):
    cfg = load(SEMI)
    cfg.model.detector.backbone.update(depth=18, init_cfg=None)
    cfg.model.detector.neck.in_channels = [64, 128, 256, 512]
    report = sn_mm.switch_norm_cfg(cfg, extent='all')
    (note,) = [note for note in report.notes if 'sync=False' in note]
    assert note.startswith('model.teacher: ') and 'no pseudo boxes' in note
    cfg.model.detector.backbone.norm_cfg = dict(type='BN')
    sn_mm.switch_norm_cfg(cfg)  # undoes nothing
    assert cfg.model.switched == dict(type='mmdet.SoftTeacher')
    model = build(dump_and_load(cfg, tmp_path))
    assert type(model).__name__ == 'SoftTeacher'
    assert syncs(model.teacher) == {False} and syncs(model.student) == {True}


def test_the_head_that_a_rank_may_pass_by_is_local():
    """Its hard-coded norms too, once the command line has converted them."""
    cfg = load('mmdet::grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py')
    report = sn_mm.switch_norm_cfg(cfg)
    assert any(note.startswith('model.roi_head.grid_head: ') for note in report.notes)
    cfg.model.backbone.init_cfg = None
    cfg.model.switched.norm_cfg = dict(type='SN')
    model = build(cfg)
    assert not find_unconverted(model)
    assert syncs(model.roi_head.grid_head) == {False}
    assert syncs(model.backbone) == {True}


LAZY = """
from mmdet.models import FCOS, FPN, FCOSHead, ResNet
from torch.nn import BatchNorm2d, GroupNorm, LayerNorm

default_scope = 'mmdet'
norm = dict(type=BatchNorm2d, requires_grad=True)
model = dict(
    type=FCOS,
    backbone=dict(type=ResNet, depth=18, norm_cfg=norm),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5),
    bbox_head=dict(
        type=FCOSHead, num_classes=2, in_channels=32, feat_channels=32,
        norm_cfg=dict(type=GroupNorm, num_groups=4)))
"""


def test_a_lazy_config_is_switched_dumped_and_built(tmp_path):
    from mmengine.config import Config

    (tmp_path / 'lazy.py').write_text(LAZY)
    cfg = Config.fromfile(tmp_path / 'lazy.py', lazy_import=True)
    report = sn_mm.switch_norm_cfg(cfg, dict(type='SN', sync=False), extent='all')
    assert [str((e.old or {}).get('type')) for e in report.switched] == [
        'BatchNorm2d', 'None', 'GroupNorm',
    ]  # fmt: skip
    dumped = dump_and_load(cfg, tmp_path)
    assert dumped.custom_imports['imports'] == ['sn_mm']
    assert dumped.model.backbone.norm_cfg == dict(type='SN', requires_grad=True, sync=False)
    assert set(types(dumped.model).values()) == {'SN'}
    for switched in (cfg, dumped):
        model = build(switched)
        assert not find_unconverted(model)
        assert model.bbox_head.cls_convs[0].bn.normalizers == ('in', 'ln')
        assert not model.neck.lateral_convs[0].bn.sync
