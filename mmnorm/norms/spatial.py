"""RBN's calibrations by statistics of each position over the channels (rbn, Table 3: mu_s and sigma_s).

For them there is no plane: they are passes of their own over the tensor. What they return is float32 at least.
"""

import torch
from torch import Tensor

from mmnorm.core import spread


def spatially_centered(layer, x: Tensor) -> Tensor:
    """x (N, C, *S) after the centering calibration of an RBN layer, if that is by a statistic of each position."""
    if not layer.calibrates('center', 'spatial'):
        return x
    return x + spread(layer.center_weight, x) * _statistic(layer.center_stat, x, layer.eps)


def spatially_scaled(layer, x: Tensor) -> Tensor:
    """x_s (N, C, *S) after the scaling calibration of an RBN layer by a statistic of each position, and its affine."""
    weight, bias = spread(layer.scale_weight, x), spread(layer.scale_bias, x)
    gamma, beta = (spread(p, x) for p in layer.gamma_beta)
    return x * torch.sigmoid(bias + weight * _statistic(layer.scale_stat, x, layer.eps)) * gamma + beta


def _statistic(name, x, eps):
    """Mean or deviation over the channels, (N, 1, *S), in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(1, keepdim=True)
    return mean if name == 'spatial_mean' else torch.sqrt((x - mean).square().mean(1, True) + eps)
