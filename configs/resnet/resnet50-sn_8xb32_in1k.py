"""ResNet-50 with SN on ImageNet: SGD 0.1 for 256 images, 100 epochs with steps at 30, 60, 90."""

_base_ = [
    'mmpretrain::resnet/resnet50_8xb32_in1k.py',
    '../_base_/sn.py',
]

# The last norm of each residual block starts at weight 0.
model = dict(backbone=dict(norm_cfg=dict(type='SN'), zero_init_residual=True))
optim_wrapper = dict(
    constructor='ImportanceOptimWrapperConstructor', paramwise_cfg=dict(norm_decay_mult=0.))
