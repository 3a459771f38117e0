"""ImageNet with 32 images on one GPU."""

_base_ = './imagenet.py'

optim_wrapper = dict(optimizer=dict(lr=0.0125))
auto_scale_lr = dict(base_batch_size=32)
