"""ResNet-50, SW, ImageNet: paper xbn, Table A2.

The paper's figure is that of SW's authors. SW is where they have it (https://github.com/XingangPan/Switchable-Whitening):
in the stem and, but for the last stage, after the second convolution of each stage's 2nd, 4th ... block.
"""

_base_ = './resnet50_bn_in1k.py'

placement = dict(stem=True, stages=(0, 1, 2), every=2, counted='stage', norm_cfg=dict(type='SW'))
model = dict(backbone=dict(type='XBNResNet', xbn=placement))
