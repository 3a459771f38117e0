"""ResNet-50, EN, 4 images on each of 8 GPUs, ImageNet: paper evalnorm, Table 1."""

_base_ = ['../../_base_/resnet50.py', '../../_base_/imagenet_8x4.py', './_base_/cosine_60e.py']

model = dict(backbone=dict(norm_cfg=dict(type='EN', mode='online')))
train_dataloader, val_dataloader = _base_.train_images, _base_.test_images
test_dataloader = val_dataloader
