"""Mask R-CNN, X-101-32x8d FPN, GN, also in FPN and box head: paper xbn, Table 4, row GN, ResNeXt-101, 4conv1fc.

Table A5 has 42.24 box AP for this row, Table 4 has 42.18, which is A5's for BN-dagger.
"""

_base_ = './mask_rcnn_gn_x101_32x8d.py'

model = _base_.gn_heads
