"""ResNet-50 with SN on ImageNet, (8, 2)."""

_base_ = 'resnet50-sn_8xb32_in1k.py'

train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=0.00625))
auto_scale_lr = dict(base_batch_size=16)
