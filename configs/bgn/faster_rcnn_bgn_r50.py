"""Faster R-CNN, R-50 FPN, BGN, 2 images on each of 8 GPUs: paper bgn has no detection table.

BGN in the backbone, its number of groups by the rule of Table 2 for 2 images per GPU. From scratch, since nobody
released weights: those of BN load, but their convolutions were trained for statistics of each channel. It is xbn's
faster_rcnn_bn_r50_scratch_8x2.py but for the norm, so that paper xbn's Table 6 has figures to compare with: the best
of learning rates 0.01, 0.02 and 0.04, where this has 0.02.
"""

_base_ = '../xbn/faster_rcnn_bn_r50_scratch_8x2.py'

model = dict(backbone=dict(norm_cfg=dict(type='BGN', num_groups='auto', batch_size=2)))
