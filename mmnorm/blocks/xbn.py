"""XBN placement: which norms of a residual backbone become batch-free (paper xbn, Section 5 and Figure 6)."""
import itertools
from pathlib import Path

from mmcv.cnn import ConvModule, build_norm_layer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from mmnorm.norms.base import warn_once

GN64 = dict(type='GN', num_groups=64)  # ResNet, ResNeXt
GN16 = dict(type='GN', num_groups=16)  # MobileNetV2


def place_xbn(backbone, position=None, every=1, norm_cfg=GN64, stem=False, stages=None, scope=None):
    """Replace one BN of each residual block of a built backbone by a batch-free normalizer.

    Attribute names stay (``bn2`` then holds the GN), so checkpoints load key by key. Call the backbone's own freezing
    again afterwards: the new layers of frozen stages are trainable until then.

    Args:
        backbone (nn.Module): A ResNet-like backbone of mmdet or mmseg, whose blocks name their norms (``norm1_name``
            ...), or one of inverted residuals: MobileNetV2 (Figure A10), ShuffleNetV2 (A11). Changed in place.
        position (int or tuple[int] or None): Which norms of a block: 1, 2 or 3 (Table 1; two at once are worse,
            footnote 2). None means 2 for a Bottleneck, 1 for a BasicBlock. In an inverted residual 2, the default, is
            after the depthwise convolution, of ShuffleNetV2's projection too; 1 and 3 are before and after it.
        every (int): The every-th blocks only, counted 1, 2, 3 ... through the whole backbone (D2, D4, D8).
        norm_cfg (dict): The batch-free normalizer. GN with more groups than a layer has channels gets as many groups
            as channels. Default GN with 64 groups.
        stem (bool): The stem's norm too, as in the authors' released weights; in a deep stem the last of the three.
        stages (tuple[int] or None): Indices of the stages to place in, from 0. None means all.
        scope (str or None): 'full' replaces every norm, downsamples and stem included: Figure 7's "Full". With
            ``stages`` every norm of those, and the stem only if ``stem``: with RBN as norm_cfg the stages of paper
            rbn's Table 4.

    Returns:
        list[str]: Names of the replaced layers, in the order of the network.

    Raises:
        TypeError: The backbone does not have the structure above.
        ValueError: An argument does not fit the backbone; the message names the layer.
    """
    blocks = residual_blocks(backbone)
    _check_arguments(backbone, position, every, stages, scope)
    if scope == 'full':
        return [_replace(backbone, name, norm_cfg) for name in _all_norms(backbone, stages, stem)]
    names = _stem_norms(backbone)[-1:] if stem else []
    for number, (stage, block_name, block) in enumerate(blocks, start=1):
        if number % every == 0 and (stages is None or stage in stages):
            names += [f'{block_name}.{name}' for name in _norms_at(block_name, block, position)]
    return [_replace(backbone, name, norm_cfg) for name in names]


def residual_blocks(backbone):
    """List (stage index, name, block) in the order of the network."""
    blocks = [(stage, f'{layer}.{name}', block)
              for stage, layer in enumerate(_stages(backbone))
              for name, block in backbone.get_submodule(layer).named_modules() if _norms_of(block)]
    if not blocks:
        raise TypeError(f'{type(backbone).__name__} has no residual blocks that name their norms: XBN can be placed '
                        'in the ResNet family of mmdet and mmseg (ResNet, ResNetV1c, ResNetV1d, ResNeXt, RegNet), in '
                        'MobileNetV2 and in ShuffleNetV2')
    return blocks


def _stages(backbone):
    """Names of what holds the blocks: ``res_layers``; MobileNetV2 calls them ``layers`` and may add a convolution."""
    names = getattr(backbone, 'res_layers', None) or getattr(backbone, 'layers', [])
    return [name for name in names
            if isinstance(name, str) and not isinstance(backbone.get_submodule(name), ConvModule)]


def _norms_of(block):
    """Names of a block's norms by position, as {1: [...], 2: [...], 3: [...]}; {} if it is no residual block."""
    if hasattr(block, 'norm1_name'):
        return {p: [getattr(block, f'norm{p}_name')] for p in (1, 2, 3) if hasattr(block, f'norm{p}_name')}
    if type(block).__name__ != 'InvertedResidual':  # mmdet, mmseg and we have a class each
        return {}
    convs = [(name, module) for name, module in block.named_modules()
             if isinstance(module, ConvModule) and module.with_norm]
    depthwise = [module.groups > 1 for _, module in convs] + [False]
    norms = {1: [], 2: [], 3: []}
    for number, (name, module) in enumerate(convs):
        position = 2 if depthwise[number] else 1 if depthwise[number + 1] else 3
        norms[position].append(f'{name}.{module.norm_name}')
    return norms


def _check_arguments(backbone, position, every, stages, scope):
    if scope not in (None, 'full'):
        raise ValueError(f"xbn: scope must be None or 'full', got {scope!r}")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f'xbn: every must be a positive integer (1, 2, 4 or 8 in the paper), got {every!r}')
    num_stages = len(_stages(backbone))
    if stages is not None and not set(stages) <= set(range(num_stages)):
        raise ValueError(f'xbn: stages must be indices below {num_stages}, got {tuple(stages)}')
    if not {1, 2, 3}.issuperset(_as_tuple(position)):
        raise ValueError(f'xbn: position must be 1, 2, 3 or a tuple of them, got {position!r}')


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
    return (position, ) if isinstance(position, int) else tuple(position)


def _norms_at(block_name, block, position):
    """Names of a block's norms at these positions; ValueError if it has none at one of them."""
    norms = _norms_of(block)
    # the authors put it at 2 where there are three, at 1 in a BasicBlock
    positions = _as_tuple(position) or (2 if 3 in norms else 1, )
    for number in positions:
        if not all(is_norm(block.get_submodule(name)) for name in norms.get(number) or ['']):
            raise ValueError(f'xbn: {block_name} ({type(block).__name__}) has no norm at position {number}')
    return [name for number in positions for name in norms[number]]


def is_norm(module):
    """Whether a module is a norm layer, batch-free or not."""
    return isinstance(module, (_BatchNorm, _InstanceNorm, nn.GroupNorm))


def _replace(backbone, name, norm_cfg):
    old = backbone.get_submodule(name)
    channels = old.num_channels if isinstance(old, nn.GroupNorm) else old.num_features
    norm_cfg = dict(norm_cfg)
    groups = norm_cfg.get('num_groups')
    if groups is not None:
        norm_cfg['num_groups'] = groups = min(groups, channels)
        if channels % groups:
            fitting = [g for g in range(1, channels + 1) if channels % g == 0]
            raise ValueError(f'xbn: {name} has {channels} channels, which {groups} groups do not divide; '
                             f'num_groups may be one of {fitting}')
    parent, _, attribute = name.rpartition('.')
    setattr(backbone.get_submodule(parent), attribute, build_norm_layer(norm_cfg, channels)[1])
    return name


class XBN:
    """What turns a host's backbone class into its XBN twin: ``class XBNResNet(XBN, ResNet)``.

    BN checkpoints load key by key: a batch-free layer ignores running statistics, and gamma and beta too if it has no
    affine of its own. They are fit to train on only where the BNs are live: a batch-free layer in front of a frozen BN
    that never saw it gives garbage, which is warned of.

    Args:
        xbn (dict or None): Arguments of :func:`place_xbn`. None means its defaults, with the class's ``xbn_norm_cfg``.
        *args, **kwargs: The host's own.

    Raises:
        FileNotFoundError: From ``init_weights``, when the pretrained file is missing; it names the ways on.
    """

    xbn_norm_cfg = GN64

    def __init__(self, *args, xbn=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.xbn_layers = place_xbn(self, **{'norm_cfg': self.xbn_norm_cfg, **(xbn or {})})
        self._freeze_stages()  # the host froze before the new layers existed; DDP breaks on half-frozen stages

    def init_weights(self):
        missing = missing_pretrained(self.init_cfg)
        if missing:
            raise FileNotFoundError(missing_pretrained_message(type(self).__name__, missing))
        super().init_weights()

    def train(self, mode=True):
        if mode and self.norm_eval and any(isinstance(m, _BatchNorm) and not _frozen(m) for m in self.modules()):
            warn_once(f'{type(self).__name__} has norm_eval=True: its BNs normalise by running statistics that never '
                      'change, only their gamma and beta and the batch-free layers train. That is meant for weights '
                      'pretrained with XBN. Otherwise set norm_eval=False (configs/_base_/live_norm.py); to say that '
                      "it is meant set norm_cfg=dict(type='FrozenBN') (configs/_base_/frozen_norm.py).")
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        bn_keys = dropped = 0
        for name in self.xbn_layers:
            own = self.get_submodule(name).state_dict()
            for key in ('running_mean', 'running_var', 'num_batches_tracked', 'weight', 'bias'):
                full = f'{prefix}{name}.{key}'
                if key not in own and full in state_dict:
                    del state_dict[full]
                    bn_keys += key == 'running_mean'
                    dropped += key == 'weight'
        if dropped:
            warn_once(f'{type(self).__name__}: gamma and beta of {dropped} BNs were dropped, since the batch-free '
                      'layers in their place have no affine (affine=True in norm_cfg gives them one)')
        if bn_keys and (self.norm_eval or self.frozen_stages >= 0 or any(map(_frozen, self.modules()))):
            warn_once(f'{type(self).__name__}: a BN checkpoint is loaded while BNs are frozen. A batch-free layer in '
                      'front of a frozen BN that never saw it gives garbage (relative error 0.1 in stage 1, 1.0 in '
                      'stage 4). Start from XBN-pretrained weights, or train the BNs: norm_eval=False and '
                      'frozen_stages=-1 (configs/_base_/live_norm.py), or recollect their statistics first.')
        batch_free = [
            name for name, layer in self.named_modules() if getattr(layer, 'running_mean', None) is not None
            and f'{prefix}{name}.weight' in state_dict and f'{prefix}{name}.running_mean' not in state_dict]
        if batch_free:
            warn_once(f'{type(self).__name__}: the checkpoint has batch-free norms in {len(batch_free)} of the places '
                      f'where this backbone has BN ({", ".join(batch_free[:3])}): it was trained with another '
                      'placement, and these BNs would have no statistics. Give xbn the arguments that it was trained '
                      "with; the authors' weights have xbn=dict(stem=True).")
        super()._load_from_state_dict(state_dict, prefix, *args)


def missing_pretrained(init_cfg):
    """Find the local checkpoint that an ``init_cfg`` names and that does not exist.

    Args:
        init_cfg (dict, list[dict] or None): As mmengine takes it.

    Returns:
        str or None: Its path; None when nothing is missing or the checkpoint is not a local path.
    """
    for cfg in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]:
        path = cfg.get('checkpoint') or ''
        if path and '://' not in path and not Path(path).is_file():
            return path
    return None


def missing_pretrained_message(backbone, path):
    """Say that weights are missing and, for an XBN backbone, name the three ways on.

    Args:
        backbone (str): Name of the class that wants them.
        path (str): Where they were looked for.

    Returns:
        str: The message, of several lines for an XBN backbone.
    """
    message = f'{backbone}: the pretrained weights {path} are missing (looked for from {Path.cwd()}).'
    if not backbone.startswith('XBN'):
        return f"""{message}
For a config of mmnorm `tools/zoo.py show CONFIG` says where they come from; tools/convert_checkpoint.py brings the
authors' releases, torchvision's and mmdet's files into the form that is loaded."""
    source = f"""The authors' ImageNet weights: follow the link "ImageNet pre-trained ResNet-50 with XBNBlock" in
     ObjectDetection/README.md of github.com/huangleiBuaa/XBNBlock, save the file as {path}"""
    if 'ibn_a' in Path(path).name:
        source = f"""IBN-Net's ImageNet weights, a file of release v1.0 of github.com/XingangPan/IBN-Net, converted:
     tools/convert_checkpoint.py FILE {path} --to IBN"""
    elif Path(path).name != 'resnet50_xbn.pth':
        source = """Pretrain them: the authors released only those of ResNet-50 and ResNeXt-50 with GN at position 2 and
     in the stem (pretrained/resnet50_xbn.pth), and these do not fit another placement or depth"""
    return f"""{message} Three ways on:
  1. {source}
  2. BN weights, with the BNs live, as in configs/mask_rcnn_xbn_r50_bn_init.py
  3. No pretrained weights, as in configs/mask_rcnn_xbn_r50_scratch.py"""


def _frozen(module):
    return getattr(module, 'frozen', False)
