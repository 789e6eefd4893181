"""ResNet-50 on ImageNet at one image per GPU, (8, 1): SN without the batch."""

_base_ = 'resnet50-sn_8xb32_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(normalizers=('in', 'ln'))))
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.003125))
auto_scale_lr = dict(base_batch_size=8)
