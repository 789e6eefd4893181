"""DeepLabV3, ResNet-101, with SN in backbone and heads on ADE20K, 80k iterations."""

_base_ = 'deeplabv3_r50-d8-sn_4xb4-80k_ade20k-512x512.py'

model = dict(pretrained='open-mmlab://resnet101_v1c', backbone=dict(depth=101))
