"""XBN placement: which norms of a residual backbone become batch-free (xbn, Section 5 and Figure 6).

Huang et al., CVPR 2022, https://arxiv.org/abs/2203.10778 (paper xbn)
"""

import collections
import itertools
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from .activations import insert_at_end, take_relus
from .layers import build_norm, channels_of, errors_naming, fit_groups, is_conv_module, is_norm

# the paper's numbers, where they divide a layer's channels
GN64 = dict(type='GN', num_groups='auto', max_groups=64)  # ResNet, ResNeXt
GN16 = dict(type='GN', num_groups='auto', max_groups=16)  # MobileNetV2


def place_xbn(
    backbone: nn.Module,
    position: int | tuple[int, ...] | str | None = None,
    every: int = 1,
    norm_cfg: dict[str, Any] = GN64,
    stem: bool = False,
    stages: Collection[int] | None = None,
    scope: str | None = None,
    counted: str = 'backbone',
    build: Callable[[dict, int], nn.Module] = build_norm,
) -> list[str]:
    """Replace one BN of each residual block of a built backbone by a batch-free normalizer.

    Attribute names stay (``bn2`` then holds the GN), so checkpoints load key by key. Call the backbone's own freezing
    again afterwards: the new layers of frozen stages are trainable until then.

    Args:
        backbone (nn.Module): A ResNet-like backbone of mmdet, mmseg or mmpretrain, whose blocks name their norms
            (``norm1_name`` ...), or one of inverted residuals: MobileNetV2 (Figure A10), ShuffleNetV2 (A11). Changed
            in place.
        position (int, tuple[int], 'end' or None): Which norms of a block: 1, 2 or 3 (Table 1; two at once are worse,
            footnote 2). None means 2 for a Bottleneck, 1 for a BasicBlock. In an inverted residual 2, the default, is
            after the depthwise convolution, of ShuffleNetV2's projection too; 1 and 3 are before and after it. 'end'
            replaces none of a block: it puts a new layer, ``IN``, between the addition and the ReLU of the last block
            of each stage. IBN-Net-b has instance norm there in the first two stages, and in place of the stem's norm
            (Pan et al., ECCV 2018, https://arxiv.org/abs/1807.09441; which blocks, and its affine: the authors' code).
        every (int): The every-th blocks only, counted 1, 2, 3 ... (D2, D4, D8).
        norm_cfg (dict): The batch-free normalizer. GN takes ``num_groups``, a number (as many as channels, where these
            are fewer) or 'auto', the largest divisor of a layer's channels up to ``max_groups`` (64); or
            ``channels_per_group``. Default GN with 'auto': 64 groups in every ResNet and ResNeXt of the paper. FRN with
            ``tlu=True`` takes the ReLU behind it away; where an addition follows it, and for the last norm of a block
            it does, a :class:`~mmnorm.norms.TLU` comes in the place of the ReLU behind that, as ``tlu`` of the block.
            With ``scope='full'`` no ReLU is left (https://arxiv.org/abs/1911.09737).
        stem (bool): The stem's norm too, as in the authors' released weights; in a deep stem the last of the three.
        stages (tuple[int] or None): Indices of the stages to place in, from 0. None means all.
        scope (str or None): 'full' replaces every norm, downsamples and stem included: Figure 7's "Full". With
            ``stages`` every norm of those, and the stem only if ``stem``: with RBN as norm_cfg the stages of paper
            rbn's Table 4.
        counted (str): 'backbone' (default): blocks are counted through the whole backbone, as in xbn; 'stage': anew in
            each stage, as the authors of SW place it (:class:`~mmnorm.norms.SW`; ``every=2``, ``stem=True``).
        build (callable): ``(norm_cfg, channels) -> layer``. Default :func:`~mmnorm.blocks.build_norm`.

    Returns:
        list[str]: Names of the replaced layers, and of new ones, in the order of the network.

    Raises:
        TypeError: The backbone does not have the structure above.
        ValueError: An argument does not fit the backbone; the message names the layer.
    """
    blocks = residual_blocks(backbone)
    _check_arguments(backbone, position, every, stages, scope, counted, norm_cfg)
    if scope == 'full':
        return _replace_all(backbone, _all_norms(backbone, stages, stem), norm_cfg, build)
    names = _stem_norms(backbone)[-1:] if stem else []
    if position == 'end':
        ends = {stage: (name, block) for stage, name, block in blocks if stages is None or stage in stages}
        added = [_add_at_end(name, block, norm_cfg, build) for name, block in ends.values()]
        return _replace_all(backbone, names, norm_cfg, build) + added
    numbers: collections.Counter = collections.Counter()
    for stage, block_name, block in blocks:
        count = stage if counted == 'stage' else None
        numbers[count] += 1
        if numbers[count] % every == 0 and (stages is None or stage in stages):
            names += [f'{block_name}.{name}' for name in _norms_at(block_name, block, position)]
    return _replace_all(backbone, names, norm_cfg, build)


def residual_blocks(backbone: nn.Module) -> list[tuple[int, str, nn.Module]]:
    """List (stage index, name, block) in the order of the network."""
    blocks = [
        (stage, f'{layer}.{name}', block)
        for stage, layer in enumerate(_stages(backbone))
        for name, block in backbone.get_submodule(layer).named_modules()
        if _norms_of(block)
    ]
    if not blocks:
        raise TypeError(
            f'{type(backbone).__name__} has no residual blocks that name their norms: XBN can be placed '
            'in the ResNet family of mmdet, mmseg and mmpretrain (ResNet, ResNetV1c, ResNetV1d, ResNeXt, RegNet), in '
            'MobileNetV2 and in ShuffleNetV2'
        )
    return blocks


def _stages(backbone):
    """Names of what holds the blocks: ``res_layers``, or ``layers``, among which a convolution may be.

    Those are names too in MobileNetV2, the stages themselves in ShuffleNetV2 (and the blocks in a transformer).
    """
    names = getattr(backbone, 'res_layers', None) or getattr(backbone, 'layers', [])
    if isinstance(names, nn.ModuleList):
        names = [f'layers.{i}' for i, stage in enumerate(names) if isinstance(stage, nn.Sequential)]
    return [name for name in names if isinstance(name, str) and not is_conv_module(backbone.get_submodule(name))]


def _norms_of(block):
    """Names of a block's norms by position, as {1: [...], 2: [...], 3: [...]}; {} if it is no residual block."""
    if hasattr(block, 'norm1_name'):
        return {p: [getattr(block, f'norm{p}_name')] for p in (1, 2, 3) if hasattr(block, f'norm{p}_name')}
    if type(block).__name__ != 'InvertedResidual':  # each host and we have a class of that name
        return {}
    convs = [(name, module) for name, module in block.named_modules() if is_conv_module(module) and module.with_norm]
    depthwise = [module.groups > 1 for _, module in convs] + [False]
    norms: dict[int, list[str]] = {1: [], 2: [], 3: []}
    for number, (name, module) in enumerate(convs):
        position = 2 if depthwise[number] else 1 if depthwise[number + 1] else 3
        norms[position].append(f'{name}.{module.norm_name}')
    return norms


def _check_arguments(backbone, position, every, stages, scope, counted, norm_cfg):
    if scope not in (None, 'full'):
        raise ValueError(f"xbn: scope must be None or 'full', got {scope!r}")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f'xbn: every must be a positive integer (1, 2, 4 or 8 in the paper), got {every!r}')
    if counted not in ('backbone', 'stage'):
        raise ValueError(f"xbn: counted must be 'backbone' or 'stage', got {counted!r}")
    num_stages = len(_stages(backbone))
    if stages is not None and not set(stages) <= set(range(num_stages)):
        raise ValueError(f'xbn: stages must be indices below {num_stages}, got {tuple(stages)}')
    if position == 'end':
        if scope is not None or every != 1:
            raise ValueError("xbn: position='end' goes with stages and stem, not with scope or every")
        if norm_cfg.get('tlu'):
            raise ValueError("xbn: at position='end' a ReLU follows the norm; set tlu=False")
    elif not {1, 2, 3}.issuperset(_as_tuple(position)):
        raise ValueError(f"xbn: position must be 1, 2, 3, a tuple of them, or 'end', got {position!r}")


def _all_norms(backbone, stages, stem):
    """Names of every norm of these stages, and of the stem if it takes part; all there are if stages is None."""
    norms = [name for name, module in backbone.named_modules() if is_norm(module)]
    if stages is None:
        return norms
    prefixes = tuple(f'{_stages(backbone)[stage]}.' for stage in stages)
    stem = _stem_norms(backbone) if stem else []
    return [name for name in norms if name in stem or name.startswith(prefixes)]


def _stem_norms(backbone):
    """Names of the norms before the first stage."""
    norms = [name for name, module in backbone.named_modules() if is_norm(module)]
    first = f'{_stages(backbone)[0]}.'
    return list(itertools.takewhile(lambda name: not name.startswith(first), norms))


def _as_tuple(position):
    if position is None:
        return ()
    return (position,) if isinstance(position, int) else tuple(position)


def _norms_at(block_name, block, position):
    """Names of a block's norms at these positions; ValueError if it has none at one of them."""
    norms = _norms_of(block)
    # the authors put it at 2 where there are three, at 1 in a BasicBlock
    positions = _as_tuple(position) or (2 if 3 in norms else 1,)
    for number in positions:
        if not all(is_norm(block.get_submodule(name)) for name in norms.get(number) or ['']):
            raise ValueError(f'xbn: {block_name} ({type(block).__name__}) has no norm at position {number}')
    return [name for number in positions for name in norms[number]]


def _replace_all(backbone, names, norm_cfg, build):
    blocks = [(name, block) for _, name, block in residual_blocks(backbone)]
    trains = norm_cfg.get('requires_grad', True) and not norm_cfg.get('frozen', False)
    thresholds = take_relus(backbone, blocks, names, trains) if norm_cfg.get('tlu') else names
    for name in names:
        cfg = norm_cfg if name in thresholds else dict(norm_cfg, tlu=False)
        backbone.set_submodule(name, _built(name, channels_of(backbone.get_submodule(name)), cfg, build))
    return names


def _add_at_end(block_name, block, norm_cfg, build):
    name = f'{block_name}.IN'  # as in the authors' files, which load key by key
    last = [name for names in _norms_of(block).values() for name in names][-1]
    insert_at_end(block_name, block, 'IN', _built(name, channels_of(block.get_submodule(last)), norm_cfg, build))
    return name


def _built(name, channels, norm_cfg, build):
    with errors_naming(f'xbn: {name}'):
        return build(fit_groups(norm_cfg, channels, GN64['max_groups']), channels)  # type: ignore[arg-type]
