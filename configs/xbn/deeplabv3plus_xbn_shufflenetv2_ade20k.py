"""DeepLabV3+, ShuffleNetV2 1.0x on ADE20K, XBN in the backbone: the blocks of paper xbn, Figure A11.

The paper measured them in ImageNet classification only (Figure A12). The output stride is 16, and the low-level
features are those of stride 8: ShuffleNetV2 has no stage of stride 4. Atrous rates are mmseg's for that stride.
"""

_base_ = './deeplabv3plus_xbn_mobilenetv2_ade20k.py'

model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='XBNShuffleNetV2',
        strides=(2, 2, 1),
        dilations=(1, 1, 2),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        init_cfg=dict(type='Pretrained', checkpoint='mmcls://shufflenet_v2'),
    ),
    decode_head=dict(in_channels=464, in_index=2, c1_in_channels=116, dilations=(1, 6, 12, 18)),
    auxiliary_head=dict(in_channels=232, in_index=1),
)
