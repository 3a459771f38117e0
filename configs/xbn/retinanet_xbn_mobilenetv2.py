"""RetinaNet, MobileNetV2 FPN, XBN on COCO: the blocks of paper xbn, Figure A10, from BN weights that are live.

The paper measured them in ImageNet classification only (Table A3); what is not said here is mmdet's RetinaNet 1x.
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/live_norm.py']

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='XBNMobileNetV2',
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2'),
        **_base_.live_norm,
    ),
    neck=dict(in_channels=[24, 32, 96, 1280]),
)
auto_scale_lr = dict(enable=True)
