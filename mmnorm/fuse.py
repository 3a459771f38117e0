"""Fold normalizers that are constant in evaluation into the convolutions before them."""
from collections import Counter
from dataclasses import dataclass, field

from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import wrappers
from mmengine.logging import print_log
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .norms import SN, FrozenBN

# By exact type: a subclass may do something of its own with its weight, such as standardise it
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, wrappers.Conv2d, wrappers.Conv3d)
_BNS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, SyncBatchNorm, FrozenBN)


@dataclass
class Fused:
    """What :func:`fuse_conv_norm` did.

    Attributes:
        folded (dict[str, str]): Name of each folded norm to that of its convolution.
        left (dict[str, str]): Name of each norm that is still there to the reason.
    """
    folded: dict = field(default_factory=dict)
    left: dict = field(default_factory=dict)

    def __str__(self):
        reasons = Counter(self.left.values())
        lines = [f'folded {len(self.folded)} norms into the convolutions before them']
        return '; '.join(lines + [f'left {count}: {reason}' for reason, count in reasons.most_common()])


def fuse_conv_norm(model):
    """Fold each norm that is a constant affine into the convolution whose output it takes.

    BN, FrozenBN and SN layers that are hardened to BN are folded; every other norm is left. A convolution is known to
    stand before a norm in a ConvModule, in an ``nn.Sequential``, and in the residual blocks and stems of mmdet and
    mmseg, which name their ``conv1`` and ``norm1``. Outputs stay equal, but for rounding.

    Args:
        model (nn.Module): In evaluation mode; changed in place, with Identity in the place of a folded norm.

    Returns:
        Fused: What was folded, and what was left and why; also logged in one line.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError('fuse_conv_norm folds what norms do in evaluation; call model.eval() before')
    names = {module: name for name, module in model.named_modules()}
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    fused = Fused()
    pairs = {norm: (parent, key, conv) for parent in model.modules() for key, norm, conv in _pairs(parent)}
    for norm, name in names.items():
        if not isinstance(norm, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
            continue
        parent, key, conv = pairs.get(norm, (None, None, None))
        reason = _why_not(norm, conv, uses)
        if reason:
            fused.left[name] = reason
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        if isinstance(parent, ConvModule):
            parent.turn_on_efficient_conv_bn_eval(False)
        setattr(parent, key, nn.Identity().eval())
        fused.folded[name] = names[conv]
    print_log(f'fuse_conv_norm: {fused}', 'current')
    return fused


def _pairs(parent):
    """Norms that a module applies to the output of a convolution of its own: (key of the norm, norm, convolution)."""
    if isinstance(parent, ConvModule):
        if parent.with_norm and parent.order.index('norm') == parent.order.index('conv') + 1:
            yield parent.norm_name, parent.norm, parent.conv
    elif isinstance(parent, nn.Sequential):
        children = list(parent.named_children())
        for (_, conv), (key, norm) in zip(children, children[1:]):
            yield key, norm, conv
    else:
        for i in (1, 2, 3):
            key = getattr(parent, f'norm{i}_name', None)
            if key is not None and hasattr(parent, f'conv{i}'):
                yield key, getattr(parent, key), getattr(parent, f'conv{i}')


def _why_not(norm, conv, uses):
    """The reason for which a norm cannot be folded, or None."""
    kind = type(norm).__name__
    if not (type(norm) in _BNS or isinstance(norm, SN) and norm.is_bn()):
        if isinstance(norm, SN):
            return f'{kind} is not hardened to BN'
        return f'{kind} is no constant affine'
    if norm.running_mean is None:
        return f'{kind} keeps no running statistics'
    if type(conv) not in _CONVS:
        return f'{kind} is not known to follow a plain convolution'
    if norm.training:
        return f'{kind} is in training mode'
    if any(m._forward_pre_hooks or m._forward_hooks for m in (conv, norm)):
        return f'{kind} or the convolution before it has hooks, which may change its weights'
    if uses[conv] > 1 or uses[norm] > 1:
        return f'{kind} or the convolution before it serves in several places'
    if conv.out_channels != norm.num_features:
        return f'{kind} has another number of channels than the convolution before it'
    return None
