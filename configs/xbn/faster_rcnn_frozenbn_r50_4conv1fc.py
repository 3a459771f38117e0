"""Faster R-CNN, R-50 FPN, BN frozen: paper xbn, Table 5, row BN-dagger, 4conv1fc head box.

Only the GN and XBN rows of 4conv1fc have GN in FPN and box head (Section 5.3.1); this has no norm there.
"""

_base_ = './faster_rcnn_frozenbn_r50.py'

model = dict(roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead')))
