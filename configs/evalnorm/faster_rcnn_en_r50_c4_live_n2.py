"""Faster R-CNN R-50 C4, EN, norms from ImageNet, trained: paper evalnorm, Table 2 (d), 2 images a batch."""

_base_ = './faster_rcnn_en_r50_c4_live_n8.py'

train_dataloader = dict(batch_size=2)
