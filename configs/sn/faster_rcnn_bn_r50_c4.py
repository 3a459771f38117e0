"""Faster R-CNN R-50 C4, BN fine-tuned: paper sn, Table IV, row BN | BN."""

_base_ = './_base_/faster_rcnn_bn_r50_c4_120k.py'
