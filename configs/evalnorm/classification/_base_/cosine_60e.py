"""60 epochs of cosine decay on images of 229 x 229: the ImageNet recipe of paper evalnorm (Section 4.2).

    _base_ = [MODEL, '../../_base_/imagenet_8xIMAGES.py', './_base_/cosine_60e.py']
    train_dataloader, val_dataloader = _base_.train_images, _base_.test_images
    test_dataloader = val_dataloader

Tests resize whole images, which is how the paper puts it. Of the Inception augmentation that it cites, crops and flips
are here, distortions of color are not.
"""

train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = dict(type='CosineAnnealingLR', T_max=60, by_epoch=True, begin=0, end=60)

load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
crop, flip = dict(type='RandomResizedCrop', scale=229), dict(type='RandomFlip', prob=0.5, direction='horizontal')
train_images = dict(dataset=dict(pipeline=[load, crop, flip, pack]))
test_images = dict(dataset=dict(pipeline=[load, dict(type='Resize', scale=(229, 229)), pack]))
