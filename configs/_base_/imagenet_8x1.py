"""ImageNet with 1 image on each of 8 GPUs."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=0.003125))
auto_scale_lr = dict(base_batch_size=8)
