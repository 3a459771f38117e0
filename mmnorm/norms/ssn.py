"""Sparse Switchable Normalization: Shao et al., CVPR 2019, https://arxiv.org/abs/1903.03793 (of sn, Table III)."""

import math

import torch
from torch import Tensor, nn

from .sn import SN


class SSN(SN):
    """Sparse Switchable Normalization: SN whose ratios become 0 and 1 while it trains.

    The ratios are the sparsestmax (:func:`sparsestmax`) of the weights, whose ``radius`` a training moves from 0 to
    that of the corners of the simplex, sqrt(2/3) of three ratios, sqrt(1/2) of two: with mmengine
    :class:`~mmnorm.openmmlab.sparsity_hook.SparsestmaxHook`, elsewhere :func:`set_sparsity` before each step. Then each
    layer has picked one normalizer for the mean and one for the variance: evaluation computes these alone, a layer that
    picked BN twice folds into the convolution before it, and :func:`~mmnorm.norms.harden` makes of it what it makes of
    an SN layer. Weights that are equal, as they start, keep equal ratios until they differ.

    An SN layer's weights load: their softmax is taken for what the ratios are made of, which at radius 0 are the same.
    So do those of the authors' code, which needs ``unbiased=True``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        groups, batch_stat, hard, bn_share, unbiased: See :class:`~mmnorm.norms.sn.SN`.
    """

    control_buffers = dict(radius=0.0)
    radius: Tensor
    _ended = False

    def control_shape(self, name):
        return () if name == 'radius' else super().control_shape(name)

    def set_sparsity(self, fraction: float) -> None:
        """Set the radius, in fractions of the largest one, at which each ratio is 0 or 1."""
        if not 0 <= fraction <= 1:
            raise ValueError(f'{type(self).__name__}: the sparsity must be from 0 to 1, got {fraction}')
        with torch.no_grad():
            self.radius.fill_(fraction * self._largest_radius)
        self._ended = fraction == 1
        self._pick()

    @property
    def _largest_radius(self):
        return _largest_radius(self.mean_weight.shape[-1])

    @property
    def picks(self):
        return self.hard or self._ended

    @property
    def selects(self):
        # where gradients may follow, the weights stay in the graph, which DistributedDataParallel expects
        return self.hard or (self._ended and not self.training and not torch.is_grad_enabled())

    def soft_ratios(self, weight):
        return ratios_at(weight, self.radius.to(weight))

    def blend(self, x):
        return super().blend(x) if self.selects else None  # whose ratios are a softmax

    def reset_parameters(self):
        self._ended = False
        super().reset_parameters()

    @staticmethod
    def weights_of_share(share):
        return [(1 - share) / 2, (1 - share) / 2, share]

    def from_bn(self, tensors):
        if 'radius' not in tensors:  # of SN
            learned = {name: tensors[name].softmax(-1) for name in self.control_parameters if name in tensors}
            tensors = tensors | learned
        return super().from_bn(tensors)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for fixed in ('mean_fixed', 'var_fixed'):  # of the authors, where the ratios are 0 and 1: so are the weights
            state_dict.pop(prefix + fixed, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        # here and not where it is needed: a GPU would be waited for
        self._ended = not self.radius.is_meta and float(self.radius) >= self._largest_radius * (1 - 1e-6)
        self._pick()


class SyncSSN(SSN):
    """:class:`SSN` with BN's part over all ranks; IN and LN are those of each sample. For arguments see there."""

    sync = True


def set_sparsity(model: nn.Module, fraction: float) -> int:
    """Set the radius of every SSN layer of a network, but for frozen ones.

    Args:
        model (nn.Module): A network or a layer.
        fraction (float): Of the largest radius: how far a training is, from 0 to 1.

    Returns:
        int: The number of these layers.

    Raises:
        ValueError: The fraction is out of range.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SSN) and not layer.frozen]
    for layer in layers:
        layer.set_sparsity(fraction)
    return len(layers)


def ratios_at(weight: Tensor, radius: Tensor) -> Tensor:
    """The ratios, (..., K), of the weights of a layer, as many, at its radius."""
    return sparsestmax(weight, (radius / _largest_radius(weight.shape[-1])).clamp(max=1))


def sparsestmax(weight: Tensor, fraction: Tensor | float) -> Tensor:
    """The point of the simplex that is nearest to a weight and not nearer than a radius to the uniform point.

    It is on the face that the nearest point of the simplex (:func:`sparsemax`) is on, moved off the middle of the face
    as far as the radius wants; or where that leaves the simplex, on the smaller face that it leaves by, and so on.

    Args:
        weight (Tensor): (..., K).
        fraction (Tensor or float): Of the largest radius, sqrt((K - 1) / K), that of the corners.

    Returns:
        Tensor: (..., K), at least 0 and with a sum of 1. Weights whose nearest point is within 1e-6 of the middle of
        its face stay there at any radius.
    """
    squared = (fraction * _largest_radius(weight.shape[-1])) ** 2
    face, moved = _face(weight.detach(), squared)
    count = face.sum(-1, keepdim=True)
    offset = face * (weight - (face * weight).sum(-1, keepdim=True) / count)
    found = offset.square().sum(-1, keepdim=True)
    moved = moved & (count > 1)
    factor = torch.where(moved, _left_on_face(squared, count, weight), 1) / torch.where(moved, found, 1)
    return face / count + factor.sqrt() * offset


def _face(weight, squared):
    """Where the point is positive, (..., K), 1 and 0; and whether the radius has moved it, (..., 1)."""
    point, moved = sparsemax(weight), weight.new_zeros((), dtype=torch.bool)
    for _ in range(weight.shape[-1] - 1):
        face = (point > 0).to(point)
        count = face.sum(-1, keepdim=True)
        middle = face / count
        offset = point - middle
        found, least = offset.square().sum(-1, keepdim=True), _left_on_face(squared, count, weight)
        moves = (found > 1e-12) & (found < least)
        pushed = middle + torch.where(moves, least / found, 1).sqrt() * offset
        point = torch.where(moves, face * sparsemax(pushed), point)
        moved = moved | moves
    return (point > 0).to(point), moved


def _left_on_face(squared, count, weight):
    """The squared radius around the middle of a face, which is at a right angle to the way from the uniform point."""
    return squared - (1 / count - 1 / weight.shape[-1])


def sparsemax(weight: Tensor) -> Tensor:
    """The nearest point of the simplex, (..., K): Martins and Astudillo, ICML 2016, https://arxiv.org/abs/1602.02068."""
    ordered = weight.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.ones_like(ordered).cumsum(-1)
    return (weight - excess.amax(-1, keepdim=True)).clamp(min=0)


def _largest_radius(members):
    return math.sqrt(1 - 1 / members)
