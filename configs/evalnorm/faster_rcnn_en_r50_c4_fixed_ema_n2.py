"""Faster R-CNN R-50 C4, EN, running statistics, gamma and beta fixed: paper evalnorm, Table 2 (c), 2 images a batch."""

_base_ = './faster_rcnn_en_r50_c4_fixed_ema_n8.py'

train_dataloader = dict(batch_size=2)
