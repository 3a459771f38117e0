"""Faster R-CNN, R-50 FPN, BN, from scratch: paper xbn, Table 6, row BN, 2 images on each of 8 GPUs.

BN is live. The box head is taken to be 2fc, without norms there and in the FPN: the paper does not say. The learning
rate is searched in 0.01, 0.02 and 0.04 for each row and batch size, not scaled with the batch: tools/zoo.py sweep.
"""

_base_ = ['../_base_/faster_rcnn_r50_fpn_90k.py', '../_base_/scratch_norm.py']

model = dict(backbone=_base_.scratch_norm)
