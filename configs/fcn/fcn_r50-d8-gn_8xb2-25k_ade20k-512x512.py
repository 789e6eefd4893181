"""For comparison: the authors' segmentation net and solver with GN.

Weights with GN exist for the plain stem of ResNet only.
"""

_base_ = 'fcn_r50-d8-sn_8xb2-25k_ade20k-512x512.py'

norm_cfg = dict(_delete_=True, type='GN', num_groups=32, requires_grad=True)
model = dict(
    data_preprocessor=dict(
        mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    pretrained='open-mmlab://detectron/resnet50_gn',
    backbone=dict(type='ResNet', norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg))
