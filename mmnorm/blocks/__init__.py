"""Where normalizers sit in a network."""
from .xbn import XBN, missing_pretrained, missing_pretrained_message, place_xbn

__all__ = ['XBN', 'missing_pretrained', 'missing_pretrained_message', 'place_xbn']
