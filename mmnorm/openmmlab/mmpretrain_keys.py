"""What mmpretrain calls otherwise than mmdet and mmseg: in deep stems, ResNetV1d's first stage and MobileNetV2."""

import re

#: Names of mmdet and mmseg, and what stands in their place in mmpretrain
_NAMES = {
    r'^stem\.0\.': 'stem.0.conv.',
    r'^stem\.1\.': 'stem.0.bn.',
    r'^stem\.3\.': 'stem.1.conv.',
    r'^stem\.4\.': 'stem.1.bn.',
    r'^stem\.6\.': 'stem.2.conv.',
    r'^stem\.7\.': 'stem.2.bn.',
    # mmdet and mmseg pool by 1 x 1 there
    r'^layer1\.0\.downsample\.1\.': 'layer1.0.downsample.0.',
    r'^layer1\.0\.downsample\.2\.': 'layer1.0.downsample.1.',
    # mmdet's MobileNetV2; the first block does not expand
    r'^layer1\.0\.depthwise_conv\.': 'layer1.0.conv.0.',
    r'^layer1\.0\.linear_conv\.': 'layer1.0.conv.1.',
    r'^(layer\d\.\d)\.expand_conv\.': r'\1.conv.0.',
    r'^(layer\d\.\d)\.depthwise_conv\.': r'\1.conv.1.',
    r'^(layer\d\.\d)\.linear_conv\.': r'\1.conv.2.',
}


def to_names_of(backbone, state_dict, prefix=''):
    """Rename, in place, what mmpretrain calls otherwise than a backbone of mmdet or mmseg.

    Args:
        backbone (nn.Module): Its own names stay as they are, so that any checkpoint that fits it fits it after.
        state_dict (dict[str, Tensor]): With a backbone's tensors below the prefix.
        prefix (str): Of its names, with the dot.
    """
    # from the end: what is downsample.1 to mmpretrain is to be 2, before its 0 becomes 1
    for name in reversed(list(backbone.state_dict())):
        for pattern, theirs in _NAMES.items():
            other = prefix + re.sub(pattern, theirs, name)
            if re.match(pattern, name) and prefix + name not in state_dict and other in state_dict:
                state_dict[prefix + name] = state_dict.pop(other)
