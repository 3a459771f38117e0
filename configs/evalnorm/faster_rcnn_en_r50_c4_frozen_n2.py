"""Faster R-CNN R-50 C4, EN, norms frozen: paper evalnorm, Table 2 (c), 2 images a batch."""

_base_ = './faster_rcnn_en_r50_c4_frozen_n8.py'

model = dict(
    backbone=dict(norm_cfg=dict(batch_size=2)), roi_head=dict(shared_head=dict(norm_cfg=dict(batch_size=64 * 2)))
)
train_dataloader = dict(batch_size=2)
