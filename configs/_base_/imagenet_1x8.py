"""ImageNet with 8 images on one GPU."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.003125))
auto_scale_lr = dict(base_batch_size=8)
