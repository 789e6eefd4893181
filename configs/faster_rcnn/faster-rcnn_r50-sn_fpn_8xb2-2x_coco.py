"""Faster R-CNN with SN in backbone, FPN and box head: the paper's model and solver, (8, 2)."""

_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
    '../_base_/sn.py',
]

norm_cfg = dict(type='SN')
model = dict(
    # A frozen stage would stay the BatchNorm that it starts as (docs/use/training.md).
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg)))

optim_wrapper = dict(
    constructor='ImportanceOptimWrapperConstructor', paramwise_cfg=dict(norm_decay_mult=0.))
