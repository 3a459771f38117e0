"""What mmpretrain calls otherwise than mmdet and mmseg: in deep stems, ResNetV1d's first stage and MobileNetV2."""

import re

#: What begins a name in mmdet and mmseg, and what in mmpretrain; BLOCK is any
_NAMES = (
    ('stem.0.', 'stem.0.conv.'),
    ('stem.1.', 'stem.0.bn.'),
    ('stem.3.', 'stem.1.conv.'),
    ('stem.4.', 'stem.1.bn.'),
    ('stem.6.', 'stem.2.conv.'),
    ('stem.7.', 'stem.2.bn.'),
    # mmdet's MobileNetV2; the first block does not expand
    ('layer1.0.depthwise_conv.', 'layer1.0.conv.0.'),
    ('layer1.0.linear_conv.', 'layer1.0.conv.1.'),
    ('BLOCK.expand_conv.', 'BLOCK.conv.0.'),
    ('BLOCK.depthwise_conv.', 'BLOCK.conv.1.'),
    ('BLOCK.linear_conv.', 'BLOCK.conv.2.'),
)
#: The same, of names that both have for something else: mmdet and mmseg pool by 1 x 1 there
_MOVED = (
    ('layer1.0.downsample.1.', 'layer1.0.downsample.0.'),
    ('layer1.0.downsample.2.', 'layer1.0.downsample.1.'),
)


def _renaming(pairs):
    """Regular expressions of the first of pairs of beginnings, and what makes the second of it (dict[str, str])."""
    return {
        r'\b' + re.escape(start).replace('BLOCK', r'(layer\d\.\d)'): other.replace('BLOCK', r'\1')
        for start, other in pairs
    }


#: Of names that only mmpretrain has, to those of mmdet and mmseg
TO_OTHERS = _renaming((theirs, ours) for ours, theirs in _NAMES)
# Each order takes a name when the tensor that had it is gone: 2 of downsample is what was 1, and then 1 what was 0
_SEARCHES = (
    (reversed, _renaming((*_NAMES, *_MOVED))),
    (list, _renaming((theirs, ours) for ours, theirs in (*_NAMES, *_MOVED))),
)


def to_names_of(backbone, state_dict, prefix=''):
    """Rename, in place, what mmpretrain calls otherwise than mmdet and mmseg to what a backbone of any of them does.

    Args:
        backbone (nn.Module): Its own names stay as they are, so that any checkpoint that fits it fits it after.
        state_dict (dict[str, object]): With a backbone's tensors, or what else has their names, below the prefix.
        prefix (str): Of its names, with the dot.
    """
    names = list(backbone.state_dict())
    for ordered, renaming in _SEARCHES:
        for name in ordered(names):
            for pattern, replacement in renaming.items():
                other = prefix + re.sub(pattern, replacement, name)
                if re.match(pattern, name) and prefix + name not in state_dict and other in state_dict:
                    state_dict[prefix + name] = state_dict.pop(other)
