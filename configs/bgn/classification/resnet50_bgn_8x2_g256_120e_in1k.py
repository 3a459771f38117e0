"""ResNet-50, BGN with 256 groups, 2 images on each of 8 GPUs, ImageNet: paper bgn, Table 1."""

_base_ = './resnet50_bgn_8x2_120e_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(num_groups=256)))
