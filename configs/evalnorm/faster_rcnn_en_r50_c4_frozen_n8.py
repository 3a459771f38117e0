"""Faster R-CNN R-50 C4, EN, norms frozen: paper evalnorm, Table 2 (c), 8 images a batch.

First reading of "not updated": the standard paradigm, where training normalizes by ImageNet's statistics. There is no
batch to estimate by then, so alpha and beta follow the paper's rule, 1 / B^2, and the batch sizes B are stated. The
other reading is faster_rcnn_en_r50_c4_fixed_ema_n8.py.
"""

_base_ = './_base_/faster_rcnn_en_r50_c4.py'

model = dict(
    backbone=dict(norm_cfg=dict(mode='rule', batch_size=8, frozen=True)),
    roi_head=dict(shared_head=dict(norm_cfg=dict(mode='rule', batch_size=64 * 8, frozen=True))),
)
