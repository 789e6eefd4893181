"""For comparison: the authors' segmentation net and solver with SyncBN."""

_base_ = 'fcn_r50-d8-sn_8xb2-25k_ade20k-512x512.py'

norm_cfg = dict(_delete_=True, type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg))
