"""Faster R-CNN R-50 C4, EN, norms from their initial values: paper evalnorm, Table 2 (b), 8 images a batch.

The other weights are ImageNet's. Statistics, gamma and beta all start anew, as the paper's "BN parameters" are taken.
"""

_base_ = './_base_/faster_rcnn_en_r50_c4.py'

init_cfg = dict(type='PretrainedWithoutNorms')
model = dict(backbone=dict(init_cfg=init_cfg), roi_head=dict(shared_head=dict(init_cfg=init_cfg)))
