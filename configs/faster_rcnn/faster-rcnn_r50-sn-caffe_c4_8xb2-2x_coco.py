"""Faster R-CNN on C4 with SN in the backbone and in the fifth stage, its head, (8, 2)."""

_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    '../_base_/sn.py',
]

norm_cfg = dict(_delete_=True, type='SN')
model = dict(
    # A frozen stage would stay the BatchNorm that it starts as (docs/use/training.md).
    backbone=dict(frozen_stages=-1, norm_cfg=norm_cfg),
    roi_head=dict(shared_head=dict(norm_cfg=norm_cfg)))

optim_wrapper = dict(
    constructor='ImportanceOptimWrapperConstructor', paramwise_cfg=dict(norm_decay_mult=0.))
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[16, 22],
        gamma=0.1)
]
