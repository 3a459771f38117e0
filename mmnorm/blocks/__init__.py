"""Where normalizers sit in a network."""
from .xbn import XBN, missing_pretrained, missing_pretrained_message, place_xbn, residual_blocks

__all__ = ['XBN', 'missing_pretrained', 'missing_pretrained_message', 'place_xbn', 'residual_blocks']
