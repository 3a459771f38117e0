"""Theoretical receptive fields, which sn sorts its importance weights by (Section 4.1.4, Fig. 7)."""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from mmnorm.blocks import norm_layers
from mmnorm.norms.modes import evaluating

from .collect import unwrapped

# A field is (size, jump): how many pixels an element sees along the width, and how many lie between two neighbors.
# None is a tensor of which that cannot be said.
_PIXEL = (1, 1)
_TAPS = dict(nearest=1, linear=2, bilinear=2, trilinear=2, bicubic=4)
_REDUCTIONS = ('mean', 'sum', 'amax', 'max', 'std', 'var', 'logsumexp')
_PRODUCTS = (
    'matmul',
    '__matmul__',
    'bmm',
    'baddbmm',
    'einsum',
    'scaled_dot_product_attention',
    'multi_head_attention_forward',
)
_SAMPLERS = ('grid_sample', 'roi_align', 'roi_pool', 'ps_roi_align', 'ps_roi_pool', 'deform_conv2d')  # anywhere
_logger = logging.getLogger('mmnorm')
_DENSE_HEADS = ('rpn_head', 'bbox_head', 'decode_head', 'auxiliary_head')


def receptive_fields(model: nn.Module, forward: Callable[[nn.Module], Any]) -> dict[str, float | None]:
    """The theoretical receptive field of what each norm layer of a network gets as input.

    It is measured on one forward pass, in evaluation mode and without gradients, by following every tensor. A
    convolution or pooling of kernel k, stride s and dilation d turns a field of size r and jump j (pixels between
    neighbors) into r + (k - 1) d j and j s; interpolation divides the jump, and bilinear one adds a jump to the size;
    pooling over the image, and attention, see the whole image; everything else sees what the largest of its inputs
    does. Statistics that a norm layer takes do not count. Sizes are those along the width.

    Args:
        model (nn.Module): Any network. Fully connected layers over flattened maps are not followed.
        forward (callable): ``forward(model)`` runs it once. Tensors that are neither computed from others inside nor
            parameters or buffers are taken for images.

    Returns:
        dict[str, float or None]: For each norm layer that was run, in the order in which they were: pixels (int),
        infinite for the whole image, None for what has no fixed field, as behind RoIAlign or deformable convolution.
        For a layer that is run several times, as one shared by the levels of a pyramid, the largest.
    """
    network = unwrapped(model)
    trace = _Trace(network)
    seen: dict[str, Any] = {}
    handles = []
    for name, layer in norm_layers(network).items():
        handles += [
            layer.register_forward_pre_hook(functools.partial(trace.enter_norm, seen, name)),
            layer.register_forward_hook(trace.leave_norm),
        ]
    try:
        with evaluating(model), trace:
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return {name: field and (field[0] if math.isinf(field[0]) else round(field[0])) for name, field in seen.items()}


def run_dense_part(model: Any, size: int = 256) -> None:
    """Run what a detector or segmentor of OpenMMLab computes at every position, on an image of noise.

    That is backbone, neck and dense heads; RoI heads have no receptive field anyway. A dense head that cannot be called
    with the features alone is left out with a warning.

    Args:
        model (nn.Module): With ``extract_feat``, as all of mmdet's and mmseg's have.
        size (int): Height and width of the image in pixels.
    """
    device = next(model.parameters()).device
    features = model.extract_feat(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device))
    for name in _DENSE_HEADS:
        heads = getattr(model, name, None)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads] if heads else []:
            try:
                head(features)
            except Exception as error:  # heads differ in what they need beside the features
                _logger.warning(f'{name} is left out of the receptive fields: {type(error).__name__}: {error}')


class _Trace(TorchFunctionMode):
    """Carries fields along the tensors of a forward pass."""

    def __init__(self, model):
        super().__init__()
        self.fields = WeakTensorKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self.fields[tensor] = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, '__name__', '')
        results = list(_tensors(args[0] if name == '__setitem__' else out))
        inputs = [*_tensors(args), *_tensors(list(kwargs.values()))]
        if results and inputs:
            field = self._behind(name, inputs, args, kwargs, results[0])
            for result in results:
                self.fields[result] = field
        return out

    def enter_norm(self, seen, name, layer, args):
        fields = [field for field in (seen.get(name), self._of(args[0])) if field]
        seen[name] = max(fields, default=None)

    def leave_norm(self, layer, args, out):
        self.fields[out] = self._of(args[0])

    def _of(self, tensor):
        return self.fields.get(tensor, _PIXEL)

    def _behind(self, name, inputs, args, kwargs, result):
        """The field of what a function returns."""
        known = [field for field in map(self._of, inputs) if field]
        # zeros_like and new_zeros hold nothing of their inputs; mmcv's operations, RoIAlign among them, write their
        # results into such tensors, unseen from here
        if not known or name.endswith('_like') or name.startswith('new_') or name in _SAMPLERS:
            return None
        size, jump = max(known)
        if name in ('conv1d', 'conv2d', 'conv3d'):
            return _slide(
                self._of(inputs[0]),
                inputs[1].shape[-1],
                _last(args, kwargs, 3, 'stride', 1),
                _last(args, kwargs, 5, 'dilation', 1),
            )
        if name.startswith('conv_transpose'):
            stride = _last(args, kwargs, 3, 'stride', 1)
            extent = (inputs[1].shape[-1] - 1) * _last(args, kwargs, 7, 'dilation', 1) + 1
            return size + (math.ceil(extent / stride) - 1) * jump, jump / stride
        if name.startswith(('max_pool', 'avg_pool')):
            kernel = _last(args, kwargs, 1, 'kernel_size', None)
            dilation = _last(args, kwargs, 4, 'dilation', 1) if name.startswith('max') else 1
            return _slide((size, jump), kernel, _last(args, kwargs, 2, 'stride', None) or kernel, dilation)
        if name == 'interpolate':
            return _resize((size, jump), inputs[0].shape[-1], result.shape[-1], kwargs.get('mode', 'nearest'))
        if name == 'pixel_shuffle':
            return size, jump * inputs[0].shape[-1] / result.shape[-1]
        if name.startswith('adaptive_') or name in _PRODUCTS and len(known) > 1 or _reduces_space(name, args, kwargs):
            return math.inf, jump
        return size, jump


def _slide(field, kernel, stride, dilation):
    """The field behind a sliding window; None stays None."""
    return field and (field[0] + (kernel - 1) * dilation * field[1], field[1] * stride)


def _resize(field, before, after, mode):
    """The field behind an interpolation from one width to another."""
    if before == after:
        return field
    # a map of 25 that is made from one of 13 has half its jump, whatever the border
    factor = round(after / before) if after > before else 1 / round(before / after)
    taps = math.ceil(1 / factor) if mode == 'area' else _TAPS[mode.removesuffix('-exact')]
    return field[0] + (taps - 1) * field[1], field[1] / factor


def _reduces_space(name, args, kwargs):
    """Whether a function reduces axes behind the first two, those of samples and channels."""
    if name not in _REDUCTIONS or not torch.is_tensor(args[0]) or args[0].dim() < 3:
        return False
    dims = kwargs.get('dim', args[1] if len(args) > 1 else None)
    if torch.is_tensor(dims):
        return False  # the elementwise maximum of two tensors
    dims = range(args[0].dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    return any(dim % args[0].dim() > 1 for dim in dims)


def _last(args, kwargs, position, name, default):
    """An argument of a function, that along the width if it has one for each axis."""
    value = kwargs.get(name, args[position] if len(args) > position else default)
    return value[-1] if isinstance(value, (tuple, list)) and value else value


def _tensors(tree):
    """Every tensor in nested tuples, lists and dicts."""
    if torch.is_tensor(tree):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(branch)
