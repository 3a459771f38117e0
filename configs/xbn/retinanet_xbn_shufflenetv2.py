"""RetinaNet, ShuffleNetV2 1.0x FPN, XBN on COCO: the blocks of paper xbn, Figure A11, from BN weights that are live.

The paper measured them in ImageNet classification only (Figure A12); what is not said here is mmdet's RetinaNet 1x.
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/live_norm.py']

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='XBNShuffleNetV2',
        init_cfg=dict(type='Pretrained', checkpoint='mmcls://shufflenet_v2'),
        **_base_.live_norm,
    ),
    neck=dict(in_channels=[116, 232, 464], start_level=0),
)  # strides 8, 16, 32, as the parent's from its level 1
auto_scale_lr = dict(enable=True)
