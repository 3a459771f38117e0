"""XBN twins of mmseg's backbones. Each takes its host's arguments and ``xbn``, the arguments of ``place_xbn``."""
from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d, ResNeXt

from .xbn import XBN


class XBNResNet(XBN, ResNet):
    """ResNet with XBN blocks."""


class XBNResNetV1c(XBN, ResNetV1c):
    """ResNetV1c (deep stem) with XBN blocks."""


class XBNResNetV1d(XBN, ResNetV1d):
    """ResNetV1d (deep stem, average-pooled downsamples) with XBN blocks."""


class XBNResNeXt(XBN, ResNeXt):
    """ResNeXt with XBN blocks."""
