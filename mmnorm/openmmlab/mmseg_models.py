"""XBN twins of mmseg's backbones. Each takes its host's arguments and ``xbn``, the arguments of ``place_xbn``."""

from mmseg.models.backbones import MobileNetV2, ResNet, ResNetV1c, ResNetV1d, ResNeXt

from mmnorm.blocks import GN16

from .xbn import XBN


class XBNResNet(XBN, ResNet):
    """ResNet with XBN blocks."""


class XBNResNetV1c(XBN, ResNetV1c):
    """ResNetV1c (deep stem) with XBN blocks."""


class XBNResNetV1d(XBN, ResNetV1d):
    """ResNetV1d (deep stem, average-pooled downsamples) with XBN blocks."""


class XBNResNeXt(XBN, ResNeXt):
    """ResNeXt with XBN blocks."""


class XBNMobileNetV2(XBN, MobileNetV2):
    """MobileNetV2 with XBN blocks: GN with 16 groups after each depthwise convolution (xbn, Figure A10, Table A3)."""

    xbn_norm_cfg = GN16
