"""The study's detector: a Mask R-CNN for digits of one class, which 2 CPU cores train in a minute.

Half as wide as the demo's, and 1600 images of 96 pixels in all.
Commands: docs/understand/study.md.
"""

_base_ = '../demo/mask-rcnn_r18-sn_fpn_2xb2-3e_scenes.py'

norm_cfg = dict(type='BN')
channels = 32
model = dict(
    backbone=dict(base_channels=16, norm_cfg=norm_cfg),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=channels, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=128,
            num_classes=1,
            norm_cfg=norm_cfg),
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(
            in_channels=channels,
            conv_out_channels=channels,
            num_convs=2,
            num_classes=1,
            norm_cfg=norm_cfg)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=100, max_per_img=50),
        rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=30)))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
data_root = '{{$DATA:data/study/scenes-low}}/coco/'
metainfo = dict(classes=('digit', ))
train_dataloader = dict(
    batch_size=4, dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(
    batch_size=4,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file='{{$DATA:data/study/scenes-low}}/coco/annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_iters = 200
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.002, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', begin=20, end=max_iters, T_max=max_iters - 20, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters))
custom_hooks = []
auto_scale_lr = dict(base_batch_size=8)
