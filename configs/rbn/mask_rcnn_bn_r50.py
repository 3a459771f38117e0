"""Mask R-CNN, R-50 FPN, BN: paper rbn, Table 6, row ResNet-50-BN.

The paper trains BN and RBN "with the same configuration", without saying which: mmdet's stock one. Stem and first stage
are fixed and all norms use running statistics (norm_eval=True), while gamma, beta and RBN's calibrations train. For
norms that train in full add _base_/live_norm.py.
"""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
auto_scale_lr = dict(enable=True)
