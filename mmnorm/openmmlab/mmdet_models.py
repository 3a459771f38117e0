"""XBN twins of mmdet's backbones. Each takes its host's arguments and ``xbn``, the arguments of ``place_xbn``."""

from mmdet.models.backbones import MobileNetV2, RegNet, ResNet, ResNetV1d, ResNeXt

from mmnorm.blocks import GN16

from .xbn import XBN


class XBNResNet(XBN, ResNet):
    """ResNet with XBN blocks (xbn, Tables 4 to 6)."""


class XBNResNetV1d(XBN, ResNetV1d):
    """ResNetV1d (deep stem, average-pooled downsamples) with XBN blocks."""


class XBNResNeXt(XBN, ResNeXt):
    """ResNeXt with XBN blocks (xbn, Table 4)."""


class XBNRegNet(XBN, RegNet):
    """RegNet with XBN blocks: GN with up to 64 groups, the largest divisor of each width."""


class XBNMobileNetV2(XBN, MobileNetV2):
    """MobileNetV2 with XBN blocks: GN with 16 groups after each depthwise convolution (xbn, Figure A10, Table A3)."""

    xbn_norm_cfg = GN16
