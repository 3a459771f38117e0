"""The backbone that tensors belong to: found by their shapes, built from mmdet or mmseg, loaded strictly."""
import re
from importlib import import_module

#: Blocks in each stage, by whether they are bottlenecks (three convolutions) and by depth.
DEPTHS = {
    False: {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    True: {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)},
}
#: What stands in place of the batch-free norm: of any number of channels, with the same tensors as GN with 64 groups.
_BATCH_FREE = dict(type='GN', num_groups=1)


def find_backbone(weights, norm):
    """Describe the backbone that tensors belong to.

    Args:
        weights (dict[str, Tensor]): Named as mmdet's ResNet names them.
        norm (str): 'XBN', 'IBN' (IBN-Net-a), or a name for ``norm_cfg``.

    Returns:
        tuple[dict, str]: Its config, for mmdet or mmseg, and what to call it ('SN ResNeXt-101 32x8d').

    Raises:
        ValueError: No backbone of these hosts is like that.
    """
    blocks = {}
    for stage, block in re.findall(r'^layer(\d+)\.(\d+)\.', '\n'.join(weights), re.MULTILINE):
        blocks[int(stage)] = max(blocks.get(int(stage), 0), int(block) + 1)
    numbers = tuple(blocks[stage] for stage in sorted(blocks))
    bottleneck = 'layer1.0.conv3.weight' in weights
    depths = [depth for depth, known in DEPTHS[bottleneck].items() if known[:len(numbers)] == numbers]
    if len(depths) != 1:
        raise ValueError(f'its stages have {numbers} {"bottleneck" if bottleneck else "basic"} blocks: the known are '
                         + ', '.join(f'{known} of ResNet-{depth}' for depth, known in DEPTHS[bottleneck].items())
                         + '; for another network give its --config')
    deep = 'conv1.weight' not in weights
    stem, last = ('stem.0.weight', 'stem.6.weight') if deep else ('conv1.weight', 'conv1.weight')
    for key in (stem, last, *(f'layer1.0.conv{i}.weight' for i in range(1, 4 if bottleneck else 3))):
        if key not in weights or weights[key].dim() != 4 or not weights[key].numel():
            raise ValueError(f'it has no convolution {key}, as every ResNet{" with a deep stem" if deep else ""} has')
    width, in_group = weights['layer1.0.conv1.weight'].shape[0], weights['layer1.0.conv2.weight'].shape[1]
    base = weights['layer1.0.conv3.weight'].shape[0] // 4 if bottleneck else width
    cfg = dict(
        type='ResNet', depth=depths[0], base_channels=base, stem_channels=weights[last].shape[0],
        in_channels=weights[stem].shape[1], num_stages=len(numbers),
        strides=(1, 2, 2, 2)[:len(numbers)], dilations=(1, ) * len(numbers), out_indices=(len(numbers) - 1, ),
        deep_stem=deep, avg_down=any(key.endswith('.downsample.2.weight') for key in weights))
    name = f'-{depths[0]}'
    if in_group != width:
        groups = width // in_group
        cfg.update(type='ResNeXt', groups=groups, base_width=in_group)
        name += f' {groups}x{in_group}d'
    special = [what for what, holds in (('deep stem', deep), (f'width {base}', base != 64)) if holds]
    name = f'{norm} {cfg["type"]}{name}' + f' ({", ".join(special)})' * bool(special)
    if norm == 'XBN':
        cfg.update(type=f'XBN{cfg["type"]}', xbn=_placement(weights, blocks, bottleneck))
    elif norm == 'IBN':
        stages = tuple(stage - 1 for stage in sorted(blocks) if f'layer{stage}.0.bn1.in_weight' in weights)
        cfg.update(type=f'XBN{cfg["type"]}', xbn=dict(position=1, stages=stages, norm_cfg=dict(type='IBN')))
    else:
        cfg.update(norm_cfg=_norm_cfg(weights, norm))
    return cfg, name


def _norm_cfg(weights, norm):
    logits = weights.get('layer1.0.bn1.mean_weight')
    without_bn = norm == 'SN' and logits is not None and logits.shape[-1] == 2
    return dict(type='SN', batch_stat=False) if without_bn else dict(type=norm)


def _placement(weights, blocks, bottleneck):
    """Arguments of place_xbn by which the norms without running statistics are placed; the default if all have them."""
    def batch_free(norm):
        return f'{norm}.running_mean' not in weights

    names = [f'layer{stage}.{block}' for stage in sorted(blocks) for block in range(blocks[stage])]
    positions = (1, 2, 3) if bottleneck else (1, 2)
    found = [(number, position) for number, name in enumerate(names, start=1) for position in positions
             if batch_free(f'{name}.bn{position}')]
    # IN of the authors has no affine, so that nothing of it is in the file
    own = f'{names[found[0][0] - 1]}.bn{found[0][1]}.weight' if found else ''
    xbn = dict(norm_cfg=_BATCH_FREE if not found or own in weights else dict(type='IN'))
    if found:
        xbn.update(every=found[0][0], position=tuple(sorted({position for _, position in found})),
                   stem=batch_free('bn1') and batch_free('stem.7'))
    return xbn


def build_backbone(cfg):
    """Build a backbone of mmdet, or of mmseg if there is no mmdet.

    Args:
        cfg (dict): As of :func:`find_backbone`.

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
        return registry.MODELS.build(dict(cfg))
    raise ImportError('what is converted is loaded into a backbone of mmdet or mmseg to see that it fits; neither is '
                      'installed: pip install mmnorm[onedl]')


def check_fit(model, weights, name):
    """Load weights of which all must be used, into a model of which all must be loaded.

    Args:
        model (nn.Module): Changed in place.
        weights (dict[str, Tensor]): A state dict; what layers of ours take for granted (EN's alpha) may be missing.
        name (str): What to call the model.

    Raises:
        ValueError: It does not fit; the first names are given.
    """
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f'it does not fit {name}: {len(wrong)} tensors have other shapes: {wrong[0]}') from error
    missing, superfluous = found.missing_keys, found.unexpected_keys
    problems = []
    if missing:
        problems.append(f'it lacks {len(missing)} of {len(model.state_dict())} tensors, {missing[0]} the first')
    if superfluous:
        problems.append(f'{len(superfluous)} of its tensors have no place there, {superfluous[0]} the first')
    if problems:
        raise ValueError(f'it does not fit {name}: {"; ".join(problems)}{_about_stems(missing, superfluous)}')


def _about_stems(missing, superfluous):
    """An explanation where one side has a deep stem (ResNetV1c, V1d) and the other has not."""
    stems = [any(key.removeprefix('backbone.').startswith('stem.') for key in keys) for keys in (missing, superfluous)]
    if not any(stems):
        return ''
    there, here = ('three convolutions, a deep stem', 'one of 7 x 7')[::1 if stems[0] else -1]
    return (f'. The stem of the network has {there}, that of the checkpoint {here}: take a backbone with its kind of '
            'stem (ResNet has one convolution, ResNetV1c and ResNetV1d have three)')
