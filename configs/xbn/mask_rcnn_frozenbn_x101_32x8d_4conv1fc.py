"""Mask R-CNN, X-101-32x8d FPN, BN frozen: paper xbn, Table 4, row BN-dagger, ResNeXt-101, 4conv1fc head box.

No norm in FPN and heads. Table A5 has 42.18 box AP for this row, Table 4 has 42.24, which is A5's for GN.
"""

_base_ = './mask_rcnn_frozenbn_x101_32x8d.py'

model = dict(roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead')))
