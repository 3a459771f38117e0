"""Faster R-CNN R-50 C4, EN, running statistics, gamma and beta fixed: paper evalnorm, Table 2 (c), 8 images a batch.

Second reading of "not updated": training normalizes by the batch, and ImageNet's statistics wait for the tests. The
other reading is faster_rcnn_en_r50_c4_frozen_n8.py; that EMA is below (b) at 8 and 4 images, not at 2, speaks for
this one.
"""

_base_ = './_base_/faster_rcnn_en_r50_c4.py'

norm_cfg = dict(momentum=0, requires_grad=False)
model = dict(backbone=dict(norm_cfg=norm_cfg), roi_head=dict(shared_head=dict(norm_cfg=norm_cfg)))
