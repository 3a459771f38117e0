"""ResNet-50, BW, ImageNet: paper xbn, Table A2.

The paper does not say where BW is. It is where the released code of the work that it cites for BW has it
(https://github.com/huangleiBuaa/StochasticityBW): in the stem and after each block's second convolution, in groups of
256 channels; that it has before the classifier is left out.
"""

_base_ = './resnet50_bn_in1k.py'

bw = dict(type='BW', channels_per_group=256, tracked='covariance')
model = dict(backbone=dict(type='XBNResNet', xbn=dict(stem=True, norm_cfg=bw)))
