"""Faster R-CNN with SN from scratch: 270k iterations of 16 images, steps at 210k and 250k."""

_base_ = 'faster-rcnn_r50-sn_fpn_8xb2-2x_coco.py'

model = dict(backbone=dict(zero_init_residual=False, init_cfg=None))

max_epochs = 37
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[29, 34],
        gamma=0.1)
]
