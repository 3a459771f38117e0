"""The row BN-dagger beside mask_rcnn_xbn_r50_digits_pretrained.py: the same with BN in the place of XBN blocks."""

_base_ = './mask_rcnn_xbn_r50_digits_pretrained.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        base_channels=16,
        frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_bn_digits.pth'),
        **_base_.frozen_norm,
    )
)
