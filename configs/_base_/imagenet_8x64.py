"""ImageNet with 64 images on each of 8 GPUs."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.2))
auto_scale_lr = dict(base_batch_size=512)
