"""The study's segmentor: a DeepLabV3+ for kinds of ground, which 2 CPU cores train in a minute.

Half as wide as the demo's, and 2400 images of 96 pixels in all.
Commands: docs/understand/study.md.
"""

_base_ = '../demo/deeplabv3plus_r18-d8-sn_2xb2-150_scenes.py'

norm_cfg = dict(type='BN')
crop_size = (96, 96)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(base_channels=16, stem_channels=16, norm_cfg=norm_cfg),
    decode_head=dict(
        c1_in_channels=16, c1_channels=16, in_channels=128, channels=32, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=16, norm_cfg=norm_cfg))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
data_root = '{{$DATA:data/study/scenes-low}}/cityscapes/'
train_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

max_iters = 300
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.002, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', begin=20, end=max_iters, T_max=max_iters - 20, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
custom_hooks = []
auto_scale_lr = dict(base_batch_size=8)
