"""DeepLabV3+, ResNet-101, with SN in backbone and heads on Cityscapes, 40k iterations."""

_base_ = 'deeplabv3plus_r50-d8-sn_4xb2-40k_cityscapes-512x1024.py'

model = dict(pretrained='open-mmlab://resnet101_v1c', backbone=dict(depth=101))
