"""GN, SN or SyncSN in the backbone and both heads of a segmentor with ResNet-50, from weights pretrained with them.

    _base_ = [YOUR_CONFIG, 'PATH/configs/sn/_base_/segmentor_norms.py']
    model = _base_.segmentor_sn

(8,2) is pretraining on 8 GPUs with 2 images each; change ``backbone.init_cfg.checkpoint`` for others. The authors'
momentum in segmentation is 0.003. SyncSN starts from the weights of SN (paper sn, Section 4.3.2). GN has the 32 groups
of its weights everywhere, where the paper fixes the channels of a group. The branch of DeepLabV3's and V3+'s heads that
pools the image has SN over one value per channel, of which the layer warns: mmseg has one norm_cfg for a whole head.
"""

_base_ = '../../_base_/gn_norm.py'

segmentor_gn = dict(  # on top of ResNet from another checkpoint
    data_preprocessor=_base_.gn_pixels,
    backbone=_base_.gn_norm,
    decode_head=dict(norm_cfg=_base_.gn),
    auxiliary_head=dict(norm_cfg=_base_.gn),
)

sn = dict(type='SN', momentum=0.003)
segmentor_sn = dict(
    pretrained=None,
    backbone=dict(
        type='ResNet', norm_cfg=sn, init_cfg=dict(type='Pretrained', checkpoint='pretrained/resnet50_sn_8x2.pth')
    ),
    decode_head=dict(norm_cfg=sn),
    auxiliary_head=dict(norm_cfg=sn),
)

syncsn = dict(type='SyncSN')
segmentor_syncsn = dict(  # on top of segmentor_sn
    backbone=dict(norm_cfg=syncsn), decode_head=dict(norm_cfg=syncsn), auxiliary_head=dict(norm_cfg=syncsn)
)
