"""ImageNet with 8 images on each of 8 GPUs."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.025))
auto_scale_lr = dict(base_batch_size=64)
