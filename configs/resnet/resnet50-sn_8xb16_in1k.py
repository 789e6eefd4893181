"""ResNet-50 with SN on ImageNet, (8, 16)."""

_base_ = 'resnet50-sn_8xb32_in1k.py'

train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.05))
auto_scale_lr = dict(base_batch_size=128)
