"""Faster R-CNN, R-50 FPN, GBGN, a baseline of paper bgn: as faster_rcnn_bgn_r50.py, with 1 x 32 groups.

The paper's text has as many batch groups as images; its figures are those of BGN with 32 groups: one batch group.
"""

_base_ = './faster_rcnn_bgn_r50.py'

model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='GBGN')))
