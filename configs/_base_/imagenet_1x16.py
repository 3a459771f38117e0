"""ImageNet with 16 images on one GPU."""

_base_ = './imagenet.py'

train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=0.00625))
auto_scale_lr = dict(base_batch_size=16)
