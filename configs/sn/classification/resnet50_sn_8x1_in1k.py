"""ResNet-50, SN, 1 image on each of 8 GPUs, ImageNet: paper sn, Table II.

IN and LN without BN, which is IN where a batch is one image.
"""

_base_ = ['../../_base_/resnet50_gamma1.py', '../../_base_/imagenet_8x1.py', '../../_base_/step_100e.py']

model = dict(backbone=dict(norm_cfg=dict(type='SN', batch_stat=False)))
