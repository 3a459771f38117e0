"""XBN twins of mmpretrain's backbones, for pretraining. Each takes its host's arguments and ``xbn``, those of
``place_xbn``.

What they are trained to loads into the twins of mmdet and mmseg of the same name, key by key.
"""

from mmpretrain.models.backbones import (
    MobileNetV2,
    RegNet,
    ResNet,
    ResNet_CIFAR,
    ResNetV1c,
    ResNetV1d,
    ResNeXt,
    ShuffleNetV2,
)

from mmnorm.blocks import GN16

from . import shufflenet_v2
from .xbn import XBN


class XBNResNet(XBN, ResNet):
    """ResNet with XBN blocks (xbn, Tables 1 and A1)."""


class XBNResNet_CIFAR(XBN, ResNet_CIFAR):
    """ResNet for small images with XBN blocks; with ``scope='full'`` and RBN a stage of rbn's Table 4."""


class XBNResNetV1c(XBN, ResNetV1c):
    """ResNetV1c (deep stem) with XBN blocks."""


class XBNResNetV1d(XBN, ResNetV1d):
    """ResNetV1d (deep stem, average-pooled downsamples) with XBN blocks."""


class XBNResNeXt(XBN, ResNeXt):
    """ResNeXt with XBN blocks (xbn, Table 2)."""


class XBNRegNet(XBN, RegNet):
    """RegNet with XBN blocks: GN with up to 64 groups, the largest divisor of each width."""


class XBNMobileNetV2(XBN, MobileNetV2):
    """MobileNetV2 with XBN blocks: GN with 16 groups after each depthwise convolution (xbn, Figure A10, Table A3)."""

    xbn_norm_cfg = GN16


class XBNShuffleNetV2(XBN, ShuffleNetV2):
    """ShuffleNetV2 with XBN blocks: GN after each depthwise convolution (xbn, Figure A11)."""

    def __init__(self, widen_factor=1.0, *args, **kwargs):
        self.widen_factor = widen_factor  # which mmpretrain's own does not keep
        super().__init__(widen_factor, *args, **kwargs)

    xbn_norm_cfg = shufflenet_v2.XBNShuffleNetV2.xbn_norm_cfg
