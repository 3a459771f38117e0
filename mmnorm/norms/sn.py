"""Switchable Normalization (paper sn)."""
import torch
from torch import nn

from .base import PlaneNorm


class SN(PlaneNorm):
    """Switchable Normalization (sn, Eq. 3 to 5): IN, LN and BN, mixed by learned softmax weights.

    Means and variances have weights of their own, ``mean_weight`` and ``var_weight``, (3,) each in the order IN, LN,
    BN, shared by all channels and initialised to 1. Variances are biased, as in the paper. In evaluation BN's part
    uses running statistics; IN and LN are those of each sample.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the mixed variance. Default 1e-5.
        momentum (float or None): As in BN. The authors' detection and segmentation code uses 0.003. Default 0.1.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.
    """

    norm_eval_note = ('IN and LN parts, softmax weights, gamma and beta train; BN\'s part uses running statistics '
                      'that stay as they were loaded.')

    def _reset_control_parameters(self):
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def coefficients(self, mean, var, count):
        mean_ln = mean.mean(1, keepdim=True)
        var_ln = (var + (mean - mean_ln).square()).mean(1, keepdim=True)
        mean_bn, var_bn = self.batch_statistics(mean, var, count)
        w, u = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mu = w[0] * mean + w[1] * mean_ln + w[2] * mean_bn
        sigma2 = u[0] * var + u[1] * var_ln + u[2] * var_bn
        scale = self.weight * torch.rsqrt(sigma2 + self.eps)
        return scale, self.bias - mu * scale
