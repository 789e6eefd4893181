"""The authors' segmentation net on ADE20K: dilated ResNet-50, one convolution, deep supervision.

20 epochs of 8 x 2 images.
"""

_base_ = [
    'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
    '../_base_/sn.py',
]

norm_cfg = dict(type='SN')
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(num_convs=1, concat_input=False, norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg))

train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    constructor='ImportanceOptimWrapperConstructor',
    optimizer=dict(lr=0.02, weight_decay=0.0001),
    paramwise_cfg=dict(norm_decay_mult=0.))
max_iters = 25260
train_cfg = dict(max_iters=max_iters, val_interval=2526)
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=2526))
auto_scale_lr = dict(enable=False, base_batch_size=16)
