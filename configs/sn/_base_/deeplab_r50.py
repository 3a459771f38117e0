"""The "DeepLab" of paper sn, Section 4.3: C1 with deep supervision of CSAILVision/semantic-segmentation-pytorch.

ResNet-50 with dilations 2 and 4 instead of strides in its last two stages, one 3 x 3 convolution to 512 channels, the
classifier, and bilinear upsampling; no atrous pyramid and no dropout. The stem is the 7 x 7 one of the SN weights and
not that code's three convolutions. mmseg upsamples in training too, where that code scales the labels down. (The
authors' SwitchNorm_Segmentation has another network: dropout 0.1, an auxiliary head of 256 channels, aligned corners.)
"""

_base_ = f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/models/fcn_r50-d8.py'

model = dict(
    pretrained=None,
    backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    decode_head=dict(num_convs=1, concat_input=False, dropout_ratio=0),
    auxiliary_head=dict(channels=512, dropout_ratio=0),
)
