"""Faster R-CNN at one image per GPU, (8, 1): SN without the batch."""

_base_ = 'faster-rcnn_r50-sn_fpn_8xb2-2x_coco.py'

norm_cfg = dict(type='SN', normalizers=('in', 'ln'))
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg)))

train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.01))
auto_scale_lr = dict(base_batch_size=8)
