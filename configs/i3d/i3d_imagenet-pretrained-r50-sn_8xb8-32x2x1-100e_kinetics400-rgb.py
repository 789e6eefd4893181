"""I3D, ResNet-50, with SN3d on Kinetics-400; weights of BatchNorm on ImageNet are inflated."""

_base_ = 'mmaction::recognition/i3d/i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb.py'
custom_imports = dict(imports=['sn_mm'])

model = dict(backbone=dict(norm_cfg=dict(type='SN3d')))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.))
