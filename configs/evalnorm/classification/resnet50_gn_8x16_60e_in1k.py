"""ResNet-50, GN with 32 groups, 16 images on each of 8 GPUs, ImageNet: paper evalnorm, Table 1."""

_base_ = './resnet50_en_8x16_60e_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='GN', num_groups=32)))
