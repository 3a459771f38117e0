"""mmseg's ADE20K.

The base is a path and not `mmseg::...`, which the onedl set finds only after mmnorm is imported: mmseg's own tools read
a config before they import what it names. So it is in every other file that inherits from mmseg.
"""

_base_ = f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/datasets/ade20k.py'
