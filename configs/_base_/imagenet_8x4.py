"""ImageNet with 4 images on each of 8 GPUs."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=0.0125))
auto_scale_lr = dict(base_batch_size=32)
