"""ImageNet with 128 images on each of 8 GPUs."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=0.4))
auto_scale_lr = dict(base_batch_size=1024)
