"""Small data sets and configs, and the scripts of tools/ run on them as users run them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch

from sn_mm.engine.safe_load import safe_load

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / 'tools'
LIMIT = 600  # seconds for one command; on two idle cores each takes 10 to 20

DETECTION = """
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        depth=18, base_channels=8, frozen_stages=-1, norm_cfg=dict(type='SN'), init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    rpn_head=dict(in_channels=8, feat_channels=8),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=8),
        bbox_head=dict(in_channels=8, fc_out_channels=16, num_classes=2),
        mask_roi_extractor=dict(out_channels=8),
        mask_head=dict(in_channels=8, conv_out_channels=8, num_convs=1, num_classes=2)),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)))
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
]
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pipeline = [*load, dict(type='PackDetInputs', meta_keys=keys)]
small = dict(
    data_root='data/coco/', metainfo=dict(classes=('person', 'bicycle')), pipeline=pipeline)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=small)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=small)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/coco/annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9))
auto_scale_lr = dict(base_batch_size=16)
default_scope = 'mmdet'
"""

SEGMENTATION = """
_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py',
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/default_runtime.py',
]
norm_cfg = dict(type='SN')
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(depth=18, base_channels=8, stem_channels=8, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=64, channels=8, num_convs=1, dropout_ratio=0, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=32, channels=8, dropout_ratio=0, norm_cfg=norm_cfg))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
small = dict(data_root='data/cityscapes/', pipeline=load)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=small)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=small)
test_dataloader = val_dataloader
train_cfg = dict(type='IterBasedTrainLoop', max_iters=24, val_interval=24)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9))
param_scheduler = [dict(type='PolyLR', power=0.9, end=24, by_epoch=False)]
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
    visualization=dict(type='SegVisualizationHook', interval=1))
randomness = dict(seed=0)
default_scope = 'mmseg'
"""


def write_split(root: Path, split: str, count: int) -> None:
    """Writes images of two squares, and the squares in the layouts of COCO and of Cityscapes."""
    rng = np.random.default_rng(len(split))
    cityscapes = (root / f'cityscapes/{kind}/{split}/a' for kind in ('leftImg8bit', 'gtFine'))
    images, labels = cityscapes
    for folder in (root / f'coco/{split}2017', root / 'coco/annotations', images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    names = ('person', 'bicycle')
    coco = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': name} for i, name in enumerate(names)],
    }
    for number in range(count):
        image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        label = np.zeros((64, 64), np.uint8)
        for kind, (x, y) in enumerate([rng.integers(0, 9, 2).tolist(), [32, 32]]):
            image[y : y + 32, x : x + 32, kind] = 200
            label[y : y + 32, x : x + 32] = kind + 1
            coco['annotations'].append(
                {
                    'id': 2 * number + kind,
                    'image_id': number,
                    'category_id': kind,
                    'iscrowd': 0,
                    'area': 1024,
                    'bbox': [x, y, 32, 32],
                    'segmentation': [[x, y, x + 32, y, x + 32, y + 32, x, y + 32]],
                }
            )
        file = {'id': number, 'file_name': f'{number}.png', 'width': 64, 'height': 64}
        coco['images'].append(file)
        cv2.imwrite(str(root / f'coco/{split}2017/{number}.png'), image)
        cv2.imwrite(str(images / f'{number}_leftImg8bit.png'), image)
        cv2.imwrite(str(labels / f'{number}_gtFine_labelTrainIds.png'), label)
    (root / f'coco/annotations/instances_{split}2017.json').write_text(json.dumps(coco))


def start(folder: Path, *command: object, **variables: str) -> subprocess.Popen:
    env = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    env.update(CUDA_VISIBLE_DEVICES='-1', **variables)
    words = [str(word) for word in command]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, env=env, text=True, stdout=pipe, stderr=pipe)


def kill_tree(process: subprocess.Popen) -> None:
    """Kills a launcher and all that it has started: its ranks are sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    process.wait()


def run(folder: Path, *command: object, **variables: str) -> tuple[int, str, str]:
    process = start(folder, *command, **variables)
    try:
        out, error = process.communicate(timeout=LIMIT)
    finally:
        process.terminate()  # torchrun passes it on to its ranks
    return process.returncode, out, error


def succeed(folder: Path, *command: object, **variables: str) -> str:
    """Runs a shell script, or a Python script as from an installed package; returns its log."""
    python = [sys.executable] if str(command[0]).endswith('.py') else []
    variables.setdefault('PYTHONPATH', str(ROOT) if python else '')
    code, out, error = run(folder, *python, *command, **variables)
    assert code == 0, (out + error)[-3000:]
    return out + error


def load(path: Path) -> dict:
    return safe_load(path)


def assert_same(one: object, other: object) -> None:
    """Whether two parts of checkpoints are equal, tensors bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    else:
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other
