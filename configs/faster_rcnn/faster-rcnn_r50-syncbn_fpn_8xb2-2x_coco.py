"""For comparison: the same model and solver with SyncBN."""

_base_ = 'faster-rcnn_r50-sn_fpn_8xb2-2x_coco.py'

norm_cfg = dict(_delete_=True, type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(norm_cfg=norm_cfg, norm_eval=False),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(bbox_head=dict(norm_cfg=norm_cfg)))
