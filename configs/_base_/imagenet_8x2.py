"""ImageNet with 2 images on each of 8 GPUs."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=2)
optim_wrapper = dict(optimizer=dict(lr=0.00625))
auto_scale_lr = dict(base_batch_size=16)
