"""Faster R-CNN R-50 C4, EN, from scratch: paper evalnorm, Table 2 (a), 8 images a batch."""

_base_ = './_base_/faster_rcnn_en_r50_c4.py'

model = dict(backbone=dict(init_cfg=None), roi_head=dict(shared_head=dict(init_cfg=None)))
