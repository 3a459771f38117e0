"""ResNet-50, EN, 32 images on each of 8 GPUs, ImageNet: paper evalnorm, Table 1.

Alpha and beta are estimated online. Its other rows are evaluations of the same training: EMA as BN, the rule 1 / B^2,
and estimated offline by tools/bn_statistics.py evalnorm.
"""

_base_ = ['../../_base_/resnet50.py', '../../_base_/imagenet.py', './_base_/cosine_60e.py']

model = dict(backbone=dict(norm_cfg=dict(type='EN', mode='online')))
train_dataloader, val_dataloader = _base_.train_images, _base_.test_images
test_dataloader = val_dataloader
