"""The CIFAR recipe of paper evalnorm (Section 4.1) for a ResNet-14, with EN.

SGD at 0.1 on batches of 128, with cosine decay over 128,000 updates, which are 327 epochs. The paper normalizes smaller
batches than SGD's; virtual_batch_size does. It says nothing of momentum, weight decay and augmentation: as usual, and
mmpretrain's.

The paper has ResNets of 20 to 254 layers with norms before the convolutions (v2) and three stages of 16, 32 and 64
channels. mmpretrain has none of these: this is v1, with two blocks in each of these stages for three and more.
"""

_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/default_runtime.py',
    '../../../_base_/live_norm.py',
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
three = dict(num_stages=3, out_indices=(2,), strides=(1, 2, 2), dilations=(1, 1, 1))
model = dict(
    backbone=dict(stem_channels=16, base_channels=16, norm_cfg=dict(type='EN', mode='online'), **three),
    head=dict(in_channels=64),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0001))
train_cfg = dict(by_epoch=True, max_epochs=327, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = dict(type='CosineAnnealingLR', T_max=327, by_epoch=True, begin=0, end=327)
auto_scale_lr = dict(enable=True, base_batch_size=128)
