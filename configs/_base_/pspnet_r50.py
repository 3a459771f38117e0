"""mmseg's PSPNet, R-50 with output stride 8."""

_base_ = f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/models/pspnet_r50-d8.py'
