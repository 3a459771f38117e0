"""Faster R-CNN R-50 C4, EN, norms from ImageNet, trained: paper evalnorm, Table 2 (d), 8 images a batch."""

_base_ = './_base_/faster_rcnn_en_r50_c4.py'
