"""Fold normalizers that are constant in evaluation into the convolutions before them."""

import copy
import logging
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmnorm.norms import SN, PerLevel, PlaneNorm

from .dataflow import observe
from .layers import is_conv_module, is_norm, set_layer

# Known by exact type; a subclass may do something of its own with its weight, and is tried.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BNS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
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


def fuse_conv_norm(model: nn.Module, example_inputs: Any = None) -> Fused:
    """Fold each norm that is a constant affine into the convolution whose output it takes.

    BN, frozen BNs, BRN, GBGN and SN layers that are hardened to BN are folded; every other norm is left. So is a
    convolution whose output does not scale with its weight, such as a weight-standardized one: convolutions and BNs of
    classes that are not torch's are tried on random numbers.

    That a norm takes the output of a convolution, and nothing else does, is seen in forward passes in evaluation mode:
    on ``example_inputs``, and, where these are not given or do not reach all, on random images. For what no pass
    reaches, the order in mmcv's ConvModule and in ``nn.Sequential`` counts. Outputs stay equal, but for rounding.

    Args:
        model (nn.Module): In evaluation mode; changed in place, with Identity in the place of a folded norm.
        example_inputs (Tensor, tuple, dict or None): What the model takes in use; a tuple of positional, a dict of
            keyword arguments. Default None: random images are tried on it, and on its parts.

    Returns:
        Fused: What was folded, and what was left and why; also logged in one line.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError('fuse_conv_norm folds what norms do in evaluation mode; call model.eval() first')
    names = {module: name for name, module in model.named_modules()}
    uses = Counter(child for parent in model.modules() for child in parent._modules.values())
    ordered = {norm: conv for parent in model.modules() for norm, conv in _pairs(parent)}
    reasons = {norm: _why_not_constant(norm) for norm in names if is_norm(norm)}
    # a pass with fewer calls would show one of them alone behind the convolution that they share
    for norm in {norm for layer in model.modules() if isinstance(layer, PerLevel) for norm in layer}:
        reasons[norm] = f'{type(norm).__name__} is one of several for the levels that share a convolution'
    constant = {norm for norm, reason in reasons.items() if reason is None}
    flow, fused = observe(model, constant, example_inputs), Fused()
    for norm, reason in reasons.items():
        name = names[norm]
        if reason is None:
            conv, reason = _source(norm, ordered.get(norm), flow)
        reason = reason or _why_not(norm, conv, uses)
        if reason:
            fused.left[name] = reason
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *_constants(norm))
        set_layer(model, norm, nn.Identity().eval())
        fused.folded[name] = names[conv]
    _logger.info(f'fuse_conv_norm: {fused}')
    return fused


def constant_affine(norm: nn.Module) -> SimpleNamespace | None:
    """What a plain BN would have that computes what a norm of ours does in evaluation; None if that is no BN."""
    if _why_not_constant(norm):
        return None
    names = 'running_mean', 'running_var', 'eps', 'weight', 'bias'
    constants: Any = dict(zip(names, _constants(norm)))
    return SimpleNamespace(**constants, num_features=norm.num_features, training=norm.training)


def _pairs(parent):
    """Norms that a module applies to the output of a convolution of its own by its class, with that convolution."""
    forward = type(parent).forward
    if is_conv_module(parent) and forward.__qualname__ == 'ConvModule.forward':
        if parent.with_norm and parent.order.index('norm') == parent.order.index('conv') + 1:
            yield parent.norm, parent.conv
    elif forward is nn.Sequential.forward:
        children = list(parent.children())
        yield from zip(children[1:], children)


def _source(norm, ordered, flow):
    """The convolution whose output a norm takes, alone, or the reason for which there is none."""
    kind = type(norm).__name__
    if norm not in flow.sources:
        if not isinstance(ordered, _ConvNd):
            return None, f'{kind} is not known to follow a convolution: no forward pass reached it; give example_inputs'
        if ordered in flow.called | flow.elsewhere:
            return None, f'the convolution before {kind} is used without it'
        return ordered, None
    convs = flow.sources[norm]
    if len(convs) > 1 or None in convs:
        return None, f'{kind} does not take the output of a convolution, or not always of the same'
    (conv,) = convs
    if flow.takers[conv] != {norm}:
        return None, f'the convolution before {kind} feeds other norms too'
    if conv in flow.elsewhere:
        return None, f'something else takes the output of the convolution before {kind}, or its weight'
    return conv, None


def _why_not_constant(norm):
    """The reason for which a norm is no constant affine, or None."""
    kind = type(norm).__name__
    if getattr(norm, 'running_mean', None) is None and hasattr(norm, 'running_mean'):
        return f'{kind} keeps no running statistics'
    if isinstance(norm, PlaneNorm):
        if norm.is_bn_in_evaluation:
            return None
        return f'{kind} is not hardened to BN' if isinstance(norm, SN) else f'{kind} is not a constant affine map'
    return None if _is_plain(norm, _BNS) or _is_bn(norm) else f'{kind} is not a constant affine map'


def _why_not(norm, conv, uses):
    """The reason for which a norm cannot be folded into the convolution before it, or None."""
    kind = type(norm).__name__
    if norm.training:
        return f'{kind} is in training mode'
    if any(m._forward_pre_hooks or m._forward_hooks for m in (conv, norm)):
        return f'{kind} or the convolution before it has hooks, which may change its weights'
    if uses[conv] > 1 or uses[norm] > 1:
        return f'{kind} or the convolution before it is used in several places'
    if conv.out_channels != norm.num_features:
        return f'{kind} has a different number of channels from the convolution before it'
    if not _is_plain(conv, _CONVS) and not _scales_with_its_weight(conv):
        return f'the output of the {type(conv).__name__} before {kind} does not scale with its weight'
    return None


def _is_plain(layer, types):
    """Whether a layer is one of these, and has no forward of its own."""
    return type(layer) in types and 'forward' not in vars(layer)


def _constants(norm):
    """Mean and variance of each channel, eps, weight and bias of a norm that is constant."""
    mean, var = norm.running_statistics() if isinstance(norm, PlaneNorm) else (norm.running_mean, norm.running_var)
    return mean, var, norm.eps, norm.weight, norm.bias


def _is_bn(norm):
    """Whether a norm of a class that is not torch's computes BN by its running statistics; tried on random numbers."""
    try:
        norm = _twin(norm)
        mean, var, eps, weight, bias = _constants(norm)
        x = _random(2, *mean.shape, 5, 5).to(mean) * 3
        x = torch.addcmul(mean[:, None, None], x, var.sqrt()[:, None, None])
        return _equal(norm(x), F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps))
    except Exception:
        return False


def _scales_with_its_weight(conv):
    """Whether ``conv(x; s w, s b + t) = s conv(x; w, b) + t``, which folding relies on; tried on random numbers."""
    if 'weight' not in conv._parameters or 'bias' not in conv._parameters or isinstance(conv, _ConvTransposeNd):
        return False
    try:
        plain, scaled = _twin(conv), _twin(conv)
        axes = conv.weight.dim() - 2
        factor, shift = _random(2, conv.out_channels, *[1] * (axes + 1)).to(plain.weight)
        scaled.weight.mul_(factor)
        bias = shift.flatten() if conv.bias is None else plain.bias * factor.flatten() + shift.flatten()
        scaled.bias = nn.Parameter(bias)
        # two sizes, since some pad by them
        spans = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size)]
        images = [_random(1, conv.in_channels, *[span + more for span in spans]).to(plain.weight) for more in (2, 5)]
        return all(_equal(scaled(x), plain(x) * factor[:, 0] + shift[:, 0]) for x in images)
    except Exception:
        return False


def _twin(module):
    return copy.deepcopy(module).double().eval().requires_grad_(False)


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=1e-9 * float(other.abs().max()))
