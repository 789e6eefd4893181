"""DeepLabV3+, ResNet-50, with SN in backbone and heads on ADE20K, 80k iterations."""

_base_ = [
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
    '../_base_/sn.py',
]

norm_cfg = dict(type='SN')
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg))

optim_wrapper = dict(
    constructor='ImportanceOptimWrapperConstructor', paramwise_cfg=dict(norm_decay_mult=0.))
