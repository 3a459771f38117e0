"""Where normalizers sit in a network."""
from .init import PretrainedWithoutNorms
from .shufflenet_v2 import ShuffleNetV2, XBNShuffleNetV2
from .xbn import XBN, missing_pretrained, missing_pretrained_message, place_xbn, residual_blocks

__all__ = [
    'PretrainedWithoutNorms', 'ShuffleNetV2', 'XBN', 'XBNShuffleNetV2', 'missing_pretrained',
    'missing_pretrained_message', 'place_xbn', 'residual_blocks'
]
