"""For comparison: the same model and solver with SyncBN. GN is in mmdet's gn/ and scratch/."""

_base_ = 'mask-rcnn_r50-sn_fpn_8xb2-2x_coco.py'

norm_cfg = dict(_delete_=True, type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(norm_cfg=norm_cfg, norm_eval=False),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)))
