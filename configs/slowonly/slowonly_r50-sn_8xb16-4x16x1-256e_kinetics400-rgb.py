"""SlowOnly, ResNet-50, with SN3d on Kinetics-400, from scratch."""

_base_ = [
    'mmaction::recognition/slowonly/slowonly_r50_8xb16-4x16x1-256e_kinetics400-rgb.py',
    '../_base_/sn.py',
]

model = dict(backbone=dict(norm_cfg=dict(type='SN3d')))
optim_wrapper = dict(
    constructor='ImportanceOptimWrapperConstructor', paramwise_cfg=dict(norm_decay_mult=0.))
