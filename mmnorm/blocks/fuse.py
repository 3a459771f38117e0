"""Fold normalizers that are constant in evaluation into the convolutions before them."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmnorm.norms import SN, FrozenBN

from .layers import is_conv_module, is_norm, set_layer

# By exact type: a subclass may do something of its own with its weight, such as standardize it. Those of the hosts that
# only add checks go by their names, since hosts are not imported here.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BNS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBN)
_HOST_CONVS = ('mmcv.cnn.bricks.wrappers.Conv2d', 'mmcv.cnn.bricks.wrappers.Conv3d')
_HOST_BNS = ('mmengine.utils.dl_utils.parrots_wrapper.SyncBatchNorm',)
_logger = logging.getLogger('mmnorm')


@dataclass
class Fused:
    """What :func:`fuse_conv_norm` did.

    Attributes:
        folded (dict[str, str]): Name of each folded norm to that of its convolution.
        left (dict[str, str]): Name of each norm that is still there to the reason.
    """

    folded: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        reasons = Counter(self.left.values())
        lines = [f'folded {len(self.folded)} norms into the convolutions before them']
        return '; '.join(lines + [f'left {count}: {reason}' for reason, count in reasons.most_common()])


def fuse_conv_norm(model: nn.Module) -> Fused:
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
        raise ValueError('fuse_conv_norm folds what norms do in evaluation mode; call model.eval() first')
    names = {module: name for name, module in model.named_modules()}
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    fused = Fused()
    pairs = {norm: conv for parent in model.modules() for norm, conv in _pairs(parent)}
    for norm, name in names.items():
        if not is_norm(norm):
            continue
        conv: Any = pairs.get(norm)
        reason = _why_not(norm, conv, uses)
        if reason:
            fused.left[name] = reason
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        set_layer(model, norm, nn.Identity().eval())
        fused.folded[name] = names[conv]
    _logger.info(f'fuse_conv_norm: {fused}')
    return fused


def _pairs(parent):
    """Norms that a module applies to the output of a convolution of its own, with that convolution."""
    if is_conv_module(parent):
        if parent.with_norm and parent.order.index('norm') == parent.order.index('conv') + 1:
            yield parent.norm, parent.conv
    elif isinstance(parent, nn.Sequential):
        children = list(parent.children())
        yield from zip(children[1:], children)
    else:
        for i in (1, 2, 3):
            name = getattr(parent, f'norm{i}_name', None)
            if name is not None and hasattr(parent, f'conv{i}'):
                yield getattr(parent, name), getattr(parent, f'conv{i}')


def _is_one_of(module, types, names):
    kind = type(module)
    return kind in types or f'{kind.__module__}.{kind.__qualname__}' in names


def _why_not(norm, conv, uses):
    """The reason for which a norm cannot be folded, or None."""
    kind = type(norm).__name__
    if not (_is_one_of(norm, _BNS, _HOST_BNS) or isinstance(norm, SN) and norm.is_bn_in_evaluation):
        if isinstance(norm, SN):
            return f'{kind} is not hardened to BN'
        return f'{kind} is not a constant affine map'
    if norm.running_mean is None:
        return f'{kind} keeps no running statistics'
    if not _is_one_of(conv, _CONVS, _HOST_CONVS):
        return f'{kind} is not known to follow a plain convolution'
    if norm.training:
        return f'{kind} is in training mode'
    if any(m._forward_pre_hooks or m._forward_hooks for m in (conv, norm)):
        return f'{kind} or the convolution before it has hooks, which may change its weights'
    if uses[conv] > 1 or uses[norm] > 1:
        return f'{kind} or the convolution before it is used in several places'
    if conv.out_channels != norm.num_features:
        return f'{kind} has a different number of channels from the convolution before it'
    return None
