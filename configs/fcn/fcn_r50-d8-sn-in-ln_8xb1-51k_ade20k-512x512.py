"""The authors' segmentation net at one image per GPU, (8, 1): SN without the batch, 20 epochs."""

_base_ = 'fcn_r50-d8-sn_8xb2-25k_ade20k-512x512.py'

norm_cfg = dict(type='SN', normalizers=('in', 'ln'))
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(norm_cfg=norm_cfg),
    auxiliary_head=dict(norm_cfg=norm_cfg))

train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.01))
max_iters = 50520
train_cfg = dict(max_iters=max_iters, val_interval=5052)
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=5052))
auto_scale_lr = dict(base_batch_size=8)
