"""mmseg's Cityscapes."""

_base_ = f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/datasets/cityscapes.py'
