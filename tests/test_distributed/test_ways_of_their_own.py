"""A real model in which a rank passes layers by: mmdet's SoftTeacher, without pseudo boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from ranks import on_ranks
from torch import nn

import sn_mm
from sn_mm import SwitchNorm
from sn_mm.cli.config import locate_config
from sn_mm.errors import InputError
from sn_mm.switch import switch_config

pytest.importorskip('mmdet')

CONFIG = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
SIZE = 64


def build_small() -> nn.Module:
    """The ready-made model, switched, with few channels."""
    cfg = Config.fromfile(locate_config(CONFIG))
    detector = cfg.model.detector
    detector.backbone.update(
        depth=18, base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None,
        norm_cfg=dict(type='BN', requires_grad=True),
    )  # fmt: skip
    detector.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    detector.rpn_head.update(in_channels=16, feat_channels=16)
    detector.roi_head.bbox_roi_extractor.out_channels = 16
    detector.roi_head.bbox_head.update(in_channels=16, num_classes=3)
    switch_config(cfg, {'type': 'SN'}, 'all')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return sn_mm.name_layers(MODELS.build(cfg.model))


def images(boxes: list[list[float]]) -> list:
    from mmdet.structures import DetDataSample

    shape = SIZE, SIZE
    meta = dict(
        img_shape=shape, ori_shape=shape, batch_input_shape=shape, pad_shape=shape,
        scale_factor=(1.0, 1.0), homography_matrix=np.eye(3, dtype=np.float32),
    )  # fmt: skip
    sample = DetDataSample(metainfo=meta)
    bboxes = torch.tensor(boxes).reshape(-1, 4)
    sample.gt_instances = InstanceData(
        bboxes=bboxes, labels=torch.zeros(len(boxes), dtype=torch.long)
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return [sample]


def train(model: nn.Module) -> dict:
    kinds = ('sup', 'unsup_teacher', 'unsup_student')
    inputs = {kind: torch.randn(1, 3, SIZE, SIZE) for kind in kinds}
    samples = {kind: images([[8.0, 8.0, 40.0, 40.0]] if kind == 'sup' else []) for kind in kinds}
    losses = model.loss(inputs, samples)
    terms = [t for v in losses.values() for t in (v if isinstance(v, list) else [v])]
    sum(t.sum() for t in terms if t.requires_grad).backward()
    return losses


@pytest.mark.slow
@on_ranks(2, timeout=240)
def test_a_teacher_without_pseudo_boxes_on_one_rank(rank, size):
    torch.manual_seed(rank)
    model = build_small()
    model.train()
    model.semi_train_cfg.pseudo_label_initial_score_thr = 2.0 if rank else 0.0
    calls = []
    head = model.teacher.roi_head.bbox_head
    head.register_forward_hook(lambda *_: calls.append('teacher'))
    for _ in range(2):
        train(model)
    assert len(calls) == (4 if rank else 6)  # no boxes whose certainty it would judge
    gradients = torch.stack([p.grad.sum() for p in model.student.backbone.parameters()])
    assert gradients.isfinite().all()
    dist.barrier()

    for layer in model.teacher.modules():  # as they would be without the switch's knowledge
        if isinstance(layer, SwitchNorm):
            layer.sync = True
    with pytest.raises(InputError) as error:
        train(model)
    assert 'rank 0: teacher.roi_head.bbox_head' in str(error.value)
    assert 'rank 1: student.' in str(error.value) and 'sync=False' in str(error.value)
    dist.barrier()
