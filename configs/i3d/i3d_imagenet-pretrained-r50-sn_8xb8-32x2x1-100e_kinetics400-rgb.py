"""I3D, ResNet-50, with SN3d on Kinetics-400; weights of BatchNorm on ImageNet are inflated."""

_base_ = [
    'mmaction::recognition/i3d/i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb.py',
    '../_base_/sn.py',
]

# A SwitchedModel, since MMAction2 inflates parameter by parameter, and the file has no importance.
model = dict(
    type='sn_mm.SwitchedModel',
    switched=dict(type='mmaction.Recognizer3D'),
    backbone=dict(norm_cfg=dict(type='SN3d')))
optim_wrapper = dict(
    constructor='ImportanceOptimWrapperConstructor', paramwise_cfg=dict(norm_decay_mult=0.))
