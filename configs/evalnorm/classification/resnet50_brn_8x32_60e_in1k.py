"""ResNet-50, BRN, 32 images on each of 8 GPUs, ImageNet: paper evalnorm, Table 1."""

_base_ = './resnet50_en_8x32_60e_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='BRN')))
