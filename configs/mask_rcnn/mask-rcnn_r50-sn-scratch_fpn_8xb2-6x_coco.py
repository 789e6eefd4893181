"""Mask R-CNN with SN from scratch, trained as long as mmdet's with GN (scratch/)."""

_base_ = 'mask-rcnn_r50-sn-scratch_fpn_8xb2-3x_coco.py'

max_epochs = 73
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[65, 71],
        gamma=0.1)
]
