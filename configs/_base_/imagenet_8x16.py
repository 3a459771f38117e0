"""ImageNet with 16 images on each of 8 GPUs."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.05))
auto_scale_lr = dict(base_batch_size=128)
