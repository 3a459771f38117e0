"""The backbone that tensors belong to: found by their shapes, built from mmdet or mmseg, loaded strictly."""

import math
import re
from importlib import import_module
from itertools import accumulate
from typing import NamedTuple

from mmnorm.norms import BW, SW
from mmnorm.norms.groups import cut_channels
from mmnorm.norms.rbn import STATISTICS

from .tensors import MIXTURES, OWN, alike, kind_of, listed, mode_of, norm_layers

#: Blocks in each stage, by whether they are bottlenecks (three convolutions) and by depth.
DEPTHS = {
    False: {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    True: {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)},
}
_STAGES = 4
#: Norms that whiten, and the mark that tells the iterations where they are not 5.
_WHITENING = dict(BW=(BW, 'batch_newton_iterations'), SW=(SW, 'switched_iterations'))
_FIRST_OF_MOBILENET = 'layer1.0.depthwise_conv.conv.weight'
#: What would do for a network that is not found.
OTHER = '; for another network give its --config'


class Backbone(NamedTuple):
    """A backbone that tensors belong to.

    Attributes:
        cfg (dict): Its config, for mmdet or mmseg: type, depth, and what differs from the defaults of both.
        name (str): What to call it ('SN ResNeXt-101 32x8d').
        notes (list[str]): What is assumed of it, since tensors do not tell.
    """

    cfg: dict
    name: str
    notes: list


def find_backbone(weights, norm, hard=False, stated=None):
    """Describe the backbone that tensors belong to.

    Args:
        weights (dict[str, Tensor]): Named as mmdet's ResNet or MobileNetV2 names them.
        norm (str): 'XBN', 'IBN' (IBN-Net-a), or a name for ``norm_cfg``.
        hard (bool): Its SN layers, if it has any, are hardened.
        stated (dict[str, dict]): Arguments that the code of these weights has, beside what tensors show.

    Returns:
        Backbone: What it is. :func:`check_placement` and :func:`check_fit` tell whether that holds.

    Raises:
        ValueError: No backbone of these hosts is like that.
    """
    cfg, name = (_mobilenet if _FIRST_OF_MOBILENET in weights else _resnet)(weights)
    cfg.update(_norms(weights, norm, cfg['type'], hard))
    for argument, parts in (stated or {}).items():
        cfg[argument] = {**cfg.get(argument, {}), **parts}
    return Backbone(cfg, f'{norm} {name}', list(_notes(weights, norm, cfg)))


def _mobilenet(weights):
    """Config and name of a MobileNetV2, but for its norms."""
    last = 'layer7.0.linear_conv.conv.weight'
    if last not in weights:
        raise ValueError(f'it has no convolution {last}, a part of every MobileNetV2')
    width = weights[last].shape[0] / 320  # of all, the widest is rounded to a multiple of 8 the least
    cfg = _without_none(type='MobileNetV2', widen_factor=width if width != 1 else None)
    return cfg, 'MobileNetV2' + f' (width {width:g})' * (width != 1)


def _resnet(weights):
    """Config and name of a ResNet or ResNeXt, but for its norms."""
    numbers = tuple(_blocks(weights).values())
    bottleneck = 'layer1.0.conv3.weight' in weights
    depths = [depth for depth, known in DEPTHS[bottleneck].items() if known[: len(numbers)] == numbers]
    if len(depths) != 1:
        raise ValueError(
            f'its stages have {numbers} {"bottleneck" if bottleneck else "basic"} blocks; known are '
            + ', '.join(f'{known} of ResNet-{depth}' for depth, known in DEPTHS[bottleneck].items())
            + OTHER
        )
    deep = 'conv1.weight' not in weights
    first, last = ('stem.0.weight', 'stem.6.weight') if deep else ('conv1.weight', 'conv1.weight')
    for key in (first, last, *(f'layer1.0.conv{i}.weight' for i in range(1, 4 if bottleneck else 3))):
        if key not in weights or weights[key].dim() != 4 or not weights[key].numel():
            raise ValueError(f'it has no convolution {key}, a part of every ResNet{" with a deep stem" * deep}')
    width, in_group = weights['layer1.0.conv1.weight'].shape[0], weights['layer1.0.conv2.weight'].shape[1]
    base = weights['layer1.0.conv3.weight'].shape[0] // 4 if bottleneck else width
    if in_group == width != base:
        raise ValueError(
            f'its bottlenecks are {width} channels wide, where those of a ResNet with its outputs have '
            f'{base}: mmdet and mmseg have no Wide ResNet{OTHER}'
        )
    groups, stem, fewer = width // in_group, weights[last].shape[0], len(numbers) < _STAGES
    cfg = _without_none(
        type='ResNeXt' if groups > 1 else 'ResNet',
        depth=depths[0],
        groups=groups if groups > 1 else None,
        base_width=in_group if groups > 1 else None,
        # by default mmdet's stem is as wide as the base, mmseg's has 64 channels
        base_channels=base if (base, stem) != (64, 64) else None,
        stem_channels=stem if (base, stem) != (64, 64) else None,
        in_channels=weights[first].shape[1] if weights[first].shape[1] != 3 else None,
        num_stages=len(numbers) if fewer else None,
        strides=(1, 2, 2)[: len(numbers)] if fewer else None,
        dilations=(1,) * len(numbers) if fewer else None,
        out_indices=tuple(range(len(numbers))) if fewer else None,
        deep_stem=True if deep else None,
        avg_down=True if any(norm.endswith('.downsample.2') for norm in norm_names(weights)) else None,
    )
    special = [
        what
        for what, holds in (
            (f'{len(numbers)} of {_STAGES} stages', fewer),
            ('deep stem', deep),
            (f'width {base}', base != 64),
        )
        if holds
    ]
    name = f'{cfg["type"]}-{depths[0]}' + f' {groups}x{in_group}d' * (groups > 1)
    return cfg, name + f' ({", ".join(special)})' * bool(special)


def _without_none(**arguments):
    return {argument: value for argument, value in arguments.items() if value is not None}


def norm_names(weights):
    """Names (list[str]) of the norms of a backbone, which has one after each convolution; some may have no tensors."""
    names = []
    for key in weights:
        if re.fullmatch(r'(conv\d|layer\d+\.\d+\.\w+_conv)\.conv\.weight', key):  # of a MobileNetV2
            names.append(f'{key.removesuffix(".conv.weight")}.bn')
            continue
        match = re.fullmatch(r'(layer\d+\.\d+\.)?(conv|stem\.|downsample\.)(\d+)\.weight', key)
        if not match:
            continue
        block, where, number = match[1] or '', match[2], int(match[3])
        if where == 'conv':
            names.append(f'{block}bn{number}')
        # the convolutions of a deep stem are its 0, 3 and 6; that of a downsample is its 0, or its 1 after a pooling
        elif number % 3 == 0 or where == 'downsample.' and number == 1 and f'{block}downsample.0.weight' not in weights:
            names.append(f'{block}{where}{number + 1}')
    return names


def placement(weights):
    """Find how XBN places the batch-free norms of a backbone.

    Args:
        weights (dict[str, Tensor]): Named as mmdet's ResNet or MobileNetV2 names them.

    Returns:
        dict: Those arguments of :func:`~mmnorm.blocks.xbn.place_xbn` that are not its defaults; {} also if there are
        no such norms. :func:`check_placement` tells whether they place exactly these.
    """
    free, blocks = _batch_free(weights), _blocks(weights)
    if not free:
        return {}
    before = dict(zip(blocks, accumulate(blocks.values(), initial=0)))
    found = [
        (int(stage), before[int(stage)] + int(block) + 1, norm)
        for stage, block, norm in re.findall(r'^layer(\d+)\.(\d+)\.(.+)$', '\n'.join(free), re.MULTILINE)
    ]
    stages, stem = {stage for stage, *_ in found}, len(found) < len(free)
    positions = tuple(sorted({int(norm[2:]) for *_, norm in found if norm.startswith('bn')}))
    full = any(norm.startswith('downsample.') for *_, norm in found)
    every = math.gcd(*(number for _, number, _ in found)) or 1
    reached = {stage for stage in blocks if (before[stage] + blocks[stage]) // every > before[stage] // every}
    usual = (2,) if 'layer1.0.conv3.weight' in weights else (1,)
    everything = full and stem and stages == reached
    return _without_none(
        position=None if full or positions in ((), usual) else positions[0] if len(positions) == 1 else positions,
        every=every if every > 1 else None,
        norm_cfg=_batch_free_cfg(weights, free),
        stem=True if stem and not everything else None,
        stages=None if everything or not full and stages == reached else tuple(stage - 1 for stage in sorted(stages)),
        scope='full' if full else None,
    )


def check_placement(model, weights, name, hint=''):
    """See that weights have their batch-free norms where an XBN backbone has them: it would drop statistics elsewhere.

    Args:
        model (nn.Module): The backbone; one without XBN's norms passes, as do weights that have all statistics.
        weights (dict[str, Tensor]): As they are before they are converted.
        name (str): What to call the model.
        hint (str): What to use instead, at the end of the message.

    Raises:
        ValueError: They have them elsewhere.
    """
    free = _batch_free(weights)
    placed = getattr(model, 'xbn_layers', free)
    if free and set(free) != set(placed):
        raise ValueError(f'its batch-free norms are {listed(free)}, those of {name} {listed(placed)}{hint}')


def _batch_free(weights):
    """Names of those norms of a backbone that keep no running statistics."""
    return [name for name in norm_names(weights) if f'{name}.running_mean' not in weights]


def _batch_free_cfg(weights, names):
    """Config of norms that a mark shows, or else only whether they have gamma; None for the authors', GN(64)."""
    whitened, iterations = (
        max((int(weights.get(f'{name}.{mark}', 0)) for name in names), default=0)
        for mark in ('whitened_groups', 'newton_iterations')
    )
    if whitened:
        method = {} if iterations == 5 else dict(iterations=iterations) if iterations else dict(method='zca')
        return dict(type='GW', num_groups=whitened, **method)
    if any(f'{name}.positional' in weights for name in names):
        return dict(type='PN')
    channels = [weights[f'{name}.weight'].numel() for name in names if f'{name}.weight' in weights]
    if not channels:
        return dict(type='IN')
    if any(number > 64 and number % 64 for number in channels):  # a layer of fewer channels gets as many groups
        return dict(type='GN', num_groups=math.gcd(64, *channels))
    return None


def _blocks(weights):
    """The number of blocks by the number of the stage, from 1."""
    blocks = {}
    for stage, block in re.findall(r'^layer(\d+)\.(\d+)\.', '\n'.join(weights), re.MULTILINE):
        blocks[int(stage)] = max(blocks.get(int(stage), 0), int(block) + 1)
    return dict(sorted(blocks.items()))


def _norms(weights, norm, host, hard):
    """Arguments of a backbone that give it its norms; ``host`` is its type without XBN."""
    if norm == 'XBN':
        xbn = placement(weights)
    elif norm == 'IBN':
        stages = tuple(stage - 1 for stage in _blocks(weights) if f'layer{stage}.0.bn1.in_weight' in weights)
        if not stages:
            raise ValueError(
                "only files of IBN-Net's authors, with names such as layer1.0.bn1.IN.weight, become IBN: "
                'it has no instance-normalized halves'
            )
        xbn = dict(position=1, stages=stages, norm_cfg=dict(type='IBN'))
    elif norm in ('SW', 'SyncSW') and not all(f'{name}.sw_mean_weight' in weights for name in norm_names(weights)):
        xbn = _switched(weights, norm)
    else:
        return dict(norm_cfg=_norm_cfg(weights, norm, hard)) if norm != 'BN' else {}
    return dict(type=f'XBN{host}', **(dict(xbn=xbn) if xbn else {}))


def _switched(weights, norm):
    """Placement of SW as its authors have it; :func:`check_fit` tells whether it is that."""
    names = [name for name in norm_names(weights) if f'{name}.sw_mean_weight' in weights]
    stages = sorted({int(stage) - 1 for stage in re.findall(r'^layer(\d+)', '\n'.join(names), re.MULTILINE)})
    if not stages:
        raise ValueError(
            "only files of SW's authors, with names such as layer1.1.sw2.sw_mean_weight, and of networks with SW "
            'become SW: it has no statistics of pairs of channels'
        )
    norm_cfg = _norm_cfg(weights, norm, False, names[0])
    return dict(every=2, counted='stage', stages=tuple(stages), stem='bn1' in names, norm_cfg=norm_cfg)


def _norm_cfg(weights, norm, hard, name=None):
    """Arguments of norms which tensors of the same kind show: those of a layer, by default the first."""
    layers, name = norm_layers(weights), name or norm_names(weights)[0]
    first, own = layers.get(name, {}), {}
    kind = kind_of(first)
    if kind in MIXTURES and alike(kind, norm.removeprefix('Sync')):
        shape = next(first[leaf].shape for leaf in OWN['SN'] if leaf in first)
        own = _without_none(
            groups=shape[0] if len(shape) > 1 else None,
            batch_stat=False if shape[-1:] == (2,) else None,
            hard=True if hard else None,
            unbiased=True if f'{name}.unbiased_instances' in weights else None,
        )
    elif kind == norm.removeprefix('Sync') == 'RBN':
        own = _without_none(
            center=None if 'center_weight' in first else False,
            scale=None if 'scale_bias' in first else False,
            **{
                f'{what}_stat': STATISTICS[int(weights[f'{name}.{what}_statistic'])]
                for what in ('center', 'scale')
                if f'{name}.{what}_statistic' in weights
            },
        )
    elif kind in _WHITENING and kind == norm.removeprefix('Sync'):
        whitening, mark = _WHITENING[kind]
        iterations = int(weights.get(f'{name}.{mark}', 0))
        matrices = [layer[leaf] for layer in layers.values() for leaf in OWN['BW'] if leaf in layer]
        channels, sizes = zip(*((matrix.shape[0] * matrix.shape[-1], matrix.shape[-1]) for matrix in matrices))
        usual = tuple(cut_channels(norm, number, most=whitening.usual_size) for number in channels)
        members = len(first['sw_mean_weight']) if kind == 'SW' else None
        own = _without_none(
            members=members if members != 2 else None,
            channels_per_group=max(sizes) if sizes != usual else None,
            iterations=iterations if iterations not in (0, 5) else None,
            tracked='covariance' if kind == 'BW' and 'running_cov' in first else None,
        )
    elif kind == norm.removeprefix('Sync') == 'EN':
        mode = mode_of([layer for layer in layers.values() if kind_of(layer) == kind])
        own = _without_none(mode=mode if mode != 'rule' else None)
    return dict(type=norm, **own)


def _notes(weights, norm, cfg):
    """What is lacking in a backbone, and what is assumed of it."""
    if 'num_stages' in cfg:
        yield (
            f'it has no layer{_STAGES}, as with C4: in a backbone of {_STAGES} stages the last would start from '
            'random weights'
        )
    if norm != 'XBN' or not _batch_free(weights):
        return
    norm_cfg = cfg.get('xbn', {}).get('norm_cfg', dict(type='GN', num_groups=64))
    if norm_cfg['type'] == 'IN':
        yield (
            "its batch-free norms have no tensors: the authors' IN, without affine, is assumed. If it was trained "
            'with another norm without affine, set that in xbn=dict(norm_cfg=...)'
        )
    elif norm_cfg['type'] == 'GN':
        authors = 16 if 'MobileNetV2' in cfg['type'] else 64
        yield (
            f'its batch-free norms are taken to be GN with {norm_cfg["num_groups"]} groups'
            + ", as the authors'" * (norm_cfg['num_groups'] == authors)
            + ': GW and IN have the same tensors, and no tensor tells the number of groups. If it was trained with '
            "another norm or number, set that in xbn=dict(norm_cfg=...); the authors' GW is dict(type='GW', eps=0)"
        )


def build_backbone(cfg):
    """Build a backbone of mmdet, or of mmseg if there is no mmdet.

    Args:
        cfg (dict): As :func:`find_backbone` has it.

    Returns:
        nn.Module: With initial weights.

    Raises:
        ImportError: There is neither.
    """
    for host in ('mmdet', 'mmseg'):
        try:
            registry = import_module(f'{host}.registry')
        except (ImportError, AssertionError):  # an mmdet beside the wrong mmcv fails by an assertion
            continue
        return registry.MODELS.build(dict(cfg, _scope_=host))  # whatever the default scope of this process is
    raise ImportError(
        'converted weights are loaded into a backbone of mmdet or mmseg to check that they fit; neither '
        'is installed: pip install mmnorm[onedl]'
    )


def check_fit(model, weights, name, hint=''):
    """Load weights of which all must be used, into a model of which all must be loaded.

    Args:
        model (nn.Module): Changed in place.
        weights (dict[str, Tensor]): A state dict; what layers of ours take for granted (EN's alpha) may be missing.
        name (str): What to call the model.
        hint (str): What to use instead, at the end of the message.

    Raises:
        ValueError: It does not fit; the first names are given.
    """
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(
            f'it does not fit {name}: {len(wrong)} tensors differ in shape: {wrong[0].rstrip(".")}{hint}'
        ) from error
    missing, superfluous = found.missing_keys, found.unexpected_keys
    problems = []
    if missing:
        problems.append(f'missing {len(missing)} of {len(model.state_dict())} tensors; first: {missing[0]}')
    if superfluous:
        problems.append(f'{len(superfluous)} of its tensors not used; first: {superfluous[0]}')
    if problems:
        raise ValueError(f'it does not fit {name}: {"; ".join(problems)}{_about_stems(missing, superfluous) or hint}')


def _about_stems(missing, superfluous):
    """An explanation where one side has a deep stem (ResNetV1c, V1d) and the other has not."""
    stems = [any(key.removeprefix('backbone.').startswith('stem.') for key in keys) for keys in (missing, superfluous)]
    if not any(stems):
        return ''
    there, here = ('three convolutions, a deep stem', 'one of 7 x 7')[:: 1 if stems[0] else -1]
    return (
        f'. The stem of the network has {there}, that of the checkpoint {here}: use a backbone with the same kind '
        'of stem (ResNet has one convolution, ResNetV1c and ResNetV1d have three)'
    )
