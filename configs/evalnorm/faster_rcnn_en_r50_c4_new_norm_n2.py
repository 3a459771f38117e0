"""Faster R-CNN R-50 C4, EN, norms from their initial values: paper evalnorm, Table 2 (b), 2 images a batch."""

_base_ = './faster_rcnn_en_r50_c4_new_norm_n8.py'

train_dataloader = dict(batch_size=2)
