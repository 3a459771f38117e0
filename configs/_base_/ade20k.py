"""mmseg's ADE20K.

The base is a path and not `mmseg::...`, which mmseg's own tools cannot resolve with the onedl set: they read a config
before they import mmnorm. So are those of the other files here that name mmseg.
"""
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/datasets/ade20k.py"
