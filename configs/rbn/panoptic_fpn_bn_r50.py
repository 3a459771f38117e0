"""Panoptic FPN, R-50, BN: paper rbn, Table 7, row ResNet-50-BN.

The paper trains BN and RBN "with the same configuration", without saying which: mmdet's stock one, as in Tables 5 and
6, GN in the semantic branch included. AP is that of instances as detectors give them (scores from 0.05); of these, the
ones that mmdet makes its panoptic map of go into the map, but for a box that one of its class suppresses which another
class suppresses in turn.
"""

_base_ = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
rcnn = _base_.model.test_cfg.rcnn
model = dict(
    type='PanopticFPNWithInstances',
    test_cfg=dict(
        rcnn=dict(score_thr=0.05, nms=dict(class_agnostic=False)), panoptic=dict(score_thr=rcnn.score_thr, nms=rcnn.nms)
    ),
)
val_evaluator = [
    _base_.val_evaluator,
    dict(type='CocoMetric', ann_file=f'{_base_.data_root}annotations/instances_val2017.json', metric=['bbox', 'segm']),
]
test_evaluator = val_evaluator
auto_scale_lr = dict(enable=True)
