"""The PSPNet of paper sn, Section 4.3: mmseg's, on ResNet-50 with the 7 x 7 stem of the SN weights.

mmseg upsamples in training too; the paper speaks of validation, and its codebase scales the labels down.
"""

_base_ = '../../_base_/pspnet_r50.py'

model = dict(
    pretrained=None,
    backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    auxiliary_head=dict(channels=512),
)  # as in CSAILVision/semantic-segmentation-pytorch; mmseg has 256
