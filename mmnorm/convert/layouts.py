"""Where other code keeps the tensors of a ResNet or a MobileNetV2: the names, as data.

The papers' authors and torchvision train on RGB images normalized by ImageNet's mean and deviation, and have the
stride in the 3 x 3 convolution: the defaults of mmdet and mmseg (``style='pytorch'``).
"""

import re
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch

from mmnorm.openmmlab.mmpretrain_keys import TO_OTHERS

from .backbones import norm_names
from .tensors import BATCH_FREE, MIXTURES, kinds

_SN_NAMES = {r'\bsn(\d)\.': r'bn\1.'}
_SEGMENTER_STEM = {r'^layer0\.0\.': 'conv1.', r'^layer0\.1\.': 'bn1.'}
_SN_STATED = {norm: dict(norm_cfg=dict(unbiased=True)) for norm in MIXTURES}
# the momentum of the authors' detection and segmentation code, in torch's sense
_SN_DENSE = {norm: dict(norm_cfg=dict(momentum=0.003, unbiased=True)) for norm in MIXTURES}
_SN_LICENSE = "if it is the authors' release: CC-BY-NC-4.0, no commercial use"
_SN_NOTE = (
    "the authors' IN and LN divide by unbiased variances, the norms of this config by the biased ones of the paper: "
    'outputs differ by the order of 1 / positions, most in the last stage and for small images; unbiased=True in '
    'norm_cfg computes what they did'
)


class Layout(NamedTuple):
    """Names of one code base.

    Attributes:
        about (str): Whose, and what of it.
        signs (tuple[str]): Names of which it has one, the usual one first; ``*`` and ``?`` stand for anything.
        norms (tuple[str]): The kind of norms that its backbone has (see :mod:`mmnorm.convert.tensors`), and after it
            those that it may have too; empty: any.
        rename (dict[str, str]): Regular expressions and what stands in their place, applied in order. What comes out
            are the names of mmdet's and mmseg's ResNet, which are torchvision's, or of their MobileNetV2.
        drop (dict[str, str]): Regular expressions of what has no place in a backbone, and what it is.
        license (str): Of the weights that are known in this layout; names tell a layout, not whose the weights are.
        note (str): What the user should know of norms that stay as they are.
        network (str): What the user should know of the network, in which the hosts' differs from the source's.
        stated (dict[str, dict]): Norm that they stay to what a backbone's config needs beside what tensors show.
    """

    about: str
    signs: tuple
    norms: tuple = ()
    rename: dict = {}
    drop: dict = {}
    license: str = 'that of its source, which the file does not state'
    note: str = ''
    network: str = ''
    stated: dict = {}


_CLASSIFIER = {r'^(fc|classifier)\.': 'ImageNet classifier'}
#: Blocks of MobileNetV2's stages; the authors count them on, from 1.
_OF_MOBILENET = [(stage + 1, block) for stage, number in enumerate((1, 2, 3, 4, 3, 3, 1)) for block in range(number)]

#: 'auto' finds the first that fits; mmdet's, which may have any norm, is the last.
LAYOUTS = {
    # its other ResNets have the names of mmdet's
    'mmpretrain': Layout(
        'mmpretrain: ResNetV1c, ResNetV1d and MobileNetV2, a backbone alone or a classifier; of any norm',
        signs=('*stem.0.conv.weight', '*layer1.0.conv.0.conv.weight'),
        rename=TO_OTHERS,
    ),
    'sn-segmentation': Layout(
        "SN's authors, SwitchNorm_Segmentation: whole segmenters",
        signs=('layer0.1.mean_weight',),
        norms=('SN',),
        rename={**_SEGMENTER_STEM, **_SN_NAMES},
        drop={r'^cls\.': 'decode head', r'^aux\.': 'auxiliary head'},
        license=_SN_LICENSE,
        note=_SN_NOTE,
        stated=_SN_DENSE,
    ),
    # (8,1) weights, without BN's part, have mean_weight of shape (2,) and no running statistics
    'sn': Layout(
        "SN's authors, Switchable-Normalization (ResNet v1)",
        signs=('layer1.0.sn1.mean_weight',),
        norms=('SN',),
        rename={**_SEGMENTER_STEM, **_SN_NAMES},
        drop={**_CLASSIFIER, r'^cls\.': 'decode head', r'^aux\.': 'auxiliary head'},
        license=_SN_LICENSE,
        note=_SN_NOTE,
        stated=_SN_STATED,
    ),
    # the radius is that at which their training ended; where the ratios are 0 and 1, so are the weights
    'ssn': Layout(
        "SSN's authors, Sparse_SwitchNorm (ResNet v1)",
        signs=('layer1.0.sn1.radius',),
        norms=('SSN',),
        rename=_SN_NAMES,
        drop={**_CLASSIFIER, r'\.(mean|var)_fixed$': 'flags of ratios that are 0 and 1'},
        license="if it is the authors' release: they state none",
        note=_SN_NOTE,
        network=(
            "the authors' max pooling pads nothing above and to the left; that of the hosts' ResNet pads one pixel, so "
            'that its windows lie one pixel further up and left, and outputs differ. '
            'backbone.maxpool = torch.nn.MaxPool2d(3, 2, ceil_mode=True) computes what they did'
        ),
        stated=_SN_STATED,
    ),
    # the stem and the second, fourth ... blocks of all stages but the last have SW, of whatever number of members
    'sw': Layout(
        "SW's authors, Switchable-Whitening (ResNet, torchvision's names)",
        signs=('layer1.1.sw?.sw_mean_weight',),
        norms=('SW', 'BN'),
        rename={r'\bsw(\d)\.': r'bn\1.'},
        drop=_CLASSIFIER,
        license="if it is the authors' release: MIT",
        note=(
            "no tensor tells the number of Newton's iterations: the 5 of the authors' scripts are assumed. To train on "
            'as they did give norm_cfg momentum=0.01. With three members their variance of LN is unbiased: larger by '
            'one over the number of values of a sample'
        ),
    ),
    # Conv_Body with C4, Conv_Body.conv_body with FPN; C4 has the last stage in its box head, as mmdet's shared_head
    'sn-detectron': Layout(
        "SN's authors, SwitchNorm_Detection (Detectron.pytorch): pretrained backbones and whole detectors",
        signs=('Conv_Body.conv_body.res2.0.sn1.mean_weight', 'Conv_Body.res2.0.sn1.mean_weight'),
        norms=('SN',),
        rename={
            r'^Conv_Body\.(conv_body\.)?res1\.': '',
            r'^Conv_Body\.(conv_body\.)?res2\.': 'layer1.',
            r'^Conv_Body\.(conv_body\.)?res3\.': 'layer2.',
            r'^Conv_Body\.(conv_body\.)?res4\.': 'layer3.',
            r'^Conv_Body\.(conv_body\.)?res5\.': 'layer4.',
            r'^Box_Head\.res5\.': 'layer4.',
            **_SN_NAMES,
        },
        drop={
            r'^Conv_Body\.(conv_body\.)?classifier\.': 'ImageNet classifier',
            r'^Conv_Body\.(conv_top|topdown_lateral_modules|posthoc_modules|extra_pyramid_modules)\.': 'FPN',
            r'^RPN\.': 'RPN',
            r'^Box_(Head|Outs)\.': 'box head',
            r'^Mask_(Head|Outs)\.': 'mask head',
            r'^Keypoint_(Head|Outs)\.': 'keypoint head',
        },
        license=_SN_LICENSE,
        note=_SN_NOTE,
        stated=_SN_DENSE,
    ),
    'rbn': Layout(
        "RBN's authors, RBN (torchvision's ResNet and ResNeXt)",
        signs=('layer1.0.bn1.scale_bias',),
        norms=('RBN',),
        drop=_CLASSIFIER,
        license="if it is the authors' release: research and education only, as their code",
    ),
    'ibn': Layout(
        "IBN-Net's authors, IBN-Net (ResNet and ResNeXt, IBN-Net-a)",
        signs=('layer1.0.bn1.IN.weight',),
        norms=('IBN', 'BN'),
        rename={r'\.IN\.(weight|bias)$': r'.in_\1', r'\.BN\.': '.'},
        drop=_CLASSIFIER,
        license="if it is the authors' release: MIT",
    ),
    # the stem's norm and those of the placement are GN, of weight and bias alone, or IN, without tensors
    'xbn': Layout(
        "XBN's authors, XBNBlock (ResNet and ResNeXt)",
        signs=('layer1.0.conv1.weight',),
        norms=(BATCH_FREE, 'BN'),
        drop={**_CLASSIFIER, r'^last_bn\.': 'norm before the classifier'},
        license="if it is the authors' release: they state none",
    ),
    # maskrcnn-benchmark's names; its BNs are frozen ones, which add no eps to the variance, and its GNs have 32 groups
    'xbn-detection': Layout(
        "XBN's authors, XBNBlock/ObjectDetection (maskrcnn-benchmark): whole detectors",
        signs=('backbone.body.stem.conv1.weight', 'body.stem.conv1.weight'),
        norms=('BN', BATCH_FREE),
        rename={r'\bbody\.stem\.(conv1|bn1)\.': r'body.\1.'},
        license="if it is the authors' release: they state none",
        note=(
            "maskrcnn-benchmark's frozen BNs add no eps to the variance: norm_cfg=dict(type='FrozenBN', eps=0) "
            "computes what they did. Its GNs have 32 groups unless its config sets GROUP_NORM.NUM_GROUPS, the authors' "
            'ImageNet weights 64'
        ),
        stated=dict(XBN=dict(norm_cfg=dict(type='FrozenBN', eps=0), xbn=dict(norm_cfg=dict(type='GN', num_groups=32)))),
    ),
    # in a block convolution, norm and activation are counted on, so that each third is a convolution
    'xbn-mobilenet': Layout(
        "XBN's authors, XBNBlock (MobileNetV2)",
        signs=('features.1.conv.0.weight',),
        rename={
            r'^features\.0\.': 'conv1.',
            rf'^features\.{len(_OF_MOBILENET) + 1}\.': 'conv2.',
            **{
                rf'^features\.{number}\.': f'layer{stage}.{block}.'
                for number, (stage, block) in enumerate(_OF_MOBILENET, start=1)
            },
            r'^(conv\d)\.0\.': r'\1.conv.',
            r'^(conv\d)\.1\.': r'\1.bn.',
            # the first block does not expand
            r'^layer1\.0\.conv\.0\.': 'layer1.0.depthwise_conv.conv.',
            r'^layer1\.0\.conv\.1\.': 'layer1.0.depthwise_conv.bn.',
            r'^layer1\.0\.conv\.3\.': 'layer1.0.linear_conv.conv.',
            r'^layer1\.0\.conv\.4\.': 'layer1.0.linear_conv.bn.',
            r'^(layer\d\.\d)\.conv\.0\.': r'\1.expand_conv.conv.',
            r'^(layer\d\.\d)\.conv\.1\.': r'\1.expand_conv.bn.',
            r'^(layer\d\.\d)\.conv\.3\.': r'\1.depthwise_conv.conv.',
            r'^(layer\d\.\d)\.conv\.4\.': r'\1.depthwise_conv.bn.',
            r'^(layer\d\.\d)\.conv\.6\.': r'\1.linear_conv.conv.',
            r'^(layer\d\.\d)\.conv\.7\.': r'\1.linear_conv.bn.',
        },
        drop=_CLASSIFIER,
        license="if it is the authors' release: they state none",
    ),
    'torchvision': Layout(
        "torchvision's ResNet and ResNeXt, alone or in its detectors",
        signs=('layer1.0.bn1.running_mean', 'backbone.body.layer1.0.bn1.running_mean'),
        norms=('BN',),
        drop=_CLASSIFIER,
        license="if it is torchvision's release: BSD-3-Clause",
    ),
    # with C4 the last stage is the heads' shared one
    'mmdet': Layout(
        'mmdet, mmseg and this package: a backbone alone, or a whole network; of any norm',
        # XBN's first norm may be IN, without tensors
        signs=('layer1.0.bn1.weight', '*layer1.0.bn?.weight', '*layer1.0.depthwise_conv.conv.weight'),
        rename={r'^roi_head\.shared_head\.': 'backbone.'},
        drop={
            **_CLASSIFIER,
            r'^ema_': "the EMA hook's other weights (mmcv 1.x): the averaged ones have the plain names",
        },
    ),
}

#: Names in networks that are not converted, and what these networks are.
_NO_BACKBONE = {
    r'^(module\.)?layer\d\.\d+\.IN\.': (
        'IBN-Net-b, with IN after the addition of some blocks, which loads as it is into a backbone with '
        "xbn=dict(position='end', stages=(0, 1), stem=True, norm_cfg=dict(type='IN', affine=True))"
    ),
    r'\.se\.fc\.\d\.weight$': 'a network of squeeze-and-excitation blocks (SE-ResNet, SE-IBN), which is not here',
    r'\.branch_proj\.0\.weight$': (
        "the XBN authors' ShuffleNetV2, whose shuffle gives another order of channels than XBNShuffleNetV2's, so that "
        'the GNs in its projections have groups of other channels: there is no such network here'
    ),
}

_NETWORK_KEYS = ('state_dict', 'model')
_TRUNK = re.compile(r'(.*?)layer1\.0\.(conv1|depthwise_conv\.conv)\.weight')


def unwrap(checkpoint):
    """Find the network's tensors in what a checkpoint file holds.

    Args:
        checkpoint (dict): A state dict, or a dict that has it as ``state_dict`` or ``model``.

    Returns:
        tuple[dict[str, Tensor], dict[str, list[str]]]: The tensors, without ``module.``; and what was left out, the
        names by what they are.

    Raises:
        ValueError: It holds no tensors, two networks, or one that no backbone here is.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError(f'it is not a checkpoint: it holds a {type(checkpoint).__name__}')
    held = [key for key in _NETWORK_KEYS if isinstance(checkpoint.get(key), dict)]
    if len(held) > 1:
        raise ValueError(f'it is ambiguous: it holds a network as {" and another as ".join(held)}')
    entries = checkpoint[held[0]] if held else checkpoint
    tensors = {key: value for key, value in entries.items() if isinstance(key, str) and torch.is_tensor(value)}
    if not tensors:
        raise ValueError(f'it holds no tensors by name, only {", ".join(map(str, list(checkpoint)[:5])) or "nothing"}')
    for pattern, what in _NO_BACKBONE.items():
        name = next((name for name in tensors if re.search(pattern, name)), None)
        if name:
            raise ValueError(f'it is {what} ({name}): it cannot be converted')
    weights = {key.removeprefix('module.'): value for key, value in tensors.items()}
    if len(weights) < len(tensors):
        raise ValueError('it is ambiguous: it has some names both with module. and without')
    others = {'no tensor': [str(key) for key in entries if key not in tensors]}
    if held and 'ema_state_dict' in checkpoint:
        others["mmengine's other weights of an averaged model: state_dict has the averaged ones"] = ['ema_state_dict']
    return weights, {what: names for what, names in others.items() if names}


def select(weights, prefix):
    """Keep the tensors below a prefix, without it, and the names of the others."""
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if not inside:
        raise ValueError(f'it has no tensor whose name starts with {prefix}')
    return inside, [key for key in weights if not key.startswith(prefix)]


def find_layout(weights):
    """Find the layout that tensors are in, the first of ``LAYOUTS`` whose names and kinds of norms they have.

    Args:
        weights (dict[str, Tensor]): As :func:`unwrap` returns them.

    Returns:
        str: Key of ``LAYOUTS``.

    Raises:
        ValueError: There is none; or they are ambiguous, as of :func:`take_backbone`.
    """
    for name, layout in LAYOUTS.items():
        if _is_in(weights, layout):
            return name
    if any('layer1.0.gn1.' in name for name in weights):
        raise ValueError('its norms are GN, which keeps no statistics that another norm could start from')
    raise ValueError(
        'it is in none of the known layouts: it has no ResNet that names its first norm layer1.0.bn1 or '
        'layer1.0.sn1 (res2.0.sn1 in Detectron), and no MobileNetV2 with features.1.conv.0 or '
        'layer1.0.depthwise_conv; its'
        f' first tensor is {next(iter(weights))}'
    )


def take_backbone(weights, layout):
    """Take a backbone out of a network and name its tensors as mmdet's and mmseg's ResNet or MobileNetV2 does.

    Args:
        weights (dict[str, Tensor]): As :func:`unwrap` returns them.
        layout (str): Key of ``LAYOUTS``.

    Returns:
        tuple[dict[str, Tensor], dict[str, str], dict[str, list[str]]]: The tensors by their new names; the old names
        by the new; and the names that were left out, by what they are.

    Raises:
        ValueError: They are not in that layout; there is no backbone, or there are several; or two tensors get the
            same name.
    """
    wanted = LAYOUTS[layout]
    if not _is_in(weights, wanted):
        norms = f'{wanted.norms[0]} norms and ' if wanted.norms else ''
        other = find_layout(weights)
        raise ValueError(
            f'it is not in the layout {layout}, which has {norms}names such as {wanted.signs[0]}; it '
            f'looks like {other}: --from {other}'
        )
    if layout == 'sw' and any(len(value) == 5 for name, value in weights.items() if name.endswith('.sw_mean_weight')):
        raise ValueError(
            "its SW has five members, to which the authors' code gives other ratios than the paper: the variances of "
            'BN and IN have those of BW and IW, and all do not sum to 1. SW does not compute that'
        )
    return _take(weights, wanted)


def take_network(weights):
    """As :func:`take_backbone`, but the whole of a network of mmdet or mmseg, under its names."""
    origin, dropped = _sort_out({name: name for name in weights}, LAYOUTS['mmdet'].drop)
    return {name: weights[name] for name in origin}, origin, dropped


def _is_in(weights, layout):
    if not any(fnmatchcase(name, sign) for sign in layout.signs for name in weights):
        return False
    return not layout.norms or layout.norms[0] in _kinds(_take(weights, layout)[0]) <= set(layout.norms)


def _kinds(weights):
    """The kinds of the norms of a backbone, also of those that have no tensors."""
    bare = any(f'{norm}.weight' not in weights for norm in norm_names(weights))
    return kinds(weights) | ({BATCH_FREE} if bare else set())


def _take(weights, layout):
    """What :func:`take_backbone` returns."""
    renamed = {}
    for old in weights:
        new = old
        for pattern, replacement in layout.rename.items():
            new = re.sub(pattern, replacement, new)
        renamed[old] = new
    trunks = list(dict.fromkeys(match[1] for match in map(_TRUNK.fullmatch, renamed.values()) if match))
    if len(trunks) != 1:
        raise ValueError(
            f'it is ambiguous: it has {len(trunks)} backbones, under '
            f'{" and ".join(trunk or "no prefix" for trunk in trunks)}; choose one with --source-prefix'
            if trunks
            else 'it has no ResNet or MobileNetV2: no tensor is named layer1.0.conv1.weight or '
            'layer1.0.depthwise_conv.conv.weight'
        )
    origin, dropped = _sort_out(renamed, layout.drop, trunks[0])
    return {new: weights[old] for new, old in origin.items()}, origin, dropped


def _sort_out(renamed, drop, trunk=''):
    """Old names by new ones without the trunk's prefix, and what is dropped; ``drop`` is of names with or without."""
    origin, dropped = {}, {}
    for old, name in renamed.items():
        new = name.removeprefix(trunk)
        what = next(
            (what for pattern, what in drop.items() if re.search(pattern, name) or re.search(pattern, new)),
            None if name.startswith(trunk) else 'not part of the backbone',
        )
        if what:
            dropped.setdefault(what, []).append(old)
        elif new in origin:
            raise ValueError(f'it is ambiguous: {origin[new]} and {old} would both become {new}')
        else:
            origin[new] = old
    return origin, dropped
