"""Representative Batch Normalization (paper rbn)."""
import torch
from torch import nn

from .base import PlaneNorm, warn_once


class RBN(PlaneNorm):
    """Representative BN (rbn, Eq. 5 and 9): BN between a centering and a scaling calibration of each instance.

    ``x_cm = x + center_weight * m``, normalised by BN, then multiplied by
    ``sigmoid(scale_weight * K_s + scale_bias)`` with K_s the spatial mean of the normalised features. Running
    statistics are those of x_cm. The three control parameters are (C,), initialised to 0, 0 and 1.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): As in BN. Default 0.1.
        fold_bn (bool): When a BN checkpoint is loaded, divide its weight by sigmoid(1), which is what the scaling
            calibration starts from, so that the network computes what the BN network computed. Default True.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.
    """

    norm_eval_note = ('Both calibrations, gamma and beta train on each sample; the normalization between them uses '
                      'running statistics that stay as they were loaded.')

    def __init__(self, num_features, eps=1e-5, momentum=0.1, fold_bn=True, frozen=False):
        super().__init__(num_features, eps, momentum, frozen)
        self.fold_bn = fold_bn

    def _reset_control_parameters(self):
        self.center_weight = nn.Parameter(torch.zeros(self.num_features))
        self.scale_weight = nn.Parameter(torch.zeros(self.num_features))
        self.scale_bias = nn.Parameter(torch.ones(self.num_features))

    def coefficients(self, mean, var, count):
        # x + w m is a shift of each instance: its mean is (1 + w) m, its variance that of x
        shifted = self.center_weight * mean
        centered = mean + shifted
        batch_mean, batch_var = self.batch_statistics(centered, var, count)
        rstd = torch.rsqrt(batch_var + self.eps)
        feature = (centered - batch_mean) * rstd
        scale = self.weight * rstd * torch.sigmoid(self.scale_weight * feature + self.scale_bias)
        return scale, self.bias + (shifted - batch_mean) * scale

    def _load_from_state_dict(self, state_dict, prefix, *args):
        control = ('center_weight', 'scale_weight', 'scale_bias')
        weight = state_dict.get(prefix + 'weight')
        if self.fold_bn and weight is not None and not any(prefix + name in state_dict for name in control):
            state_dict[prefix + 'weight'] = weight / torch.sigmoid(torch.ones_like(weight))
            warn_once('RBN: a BN checkpoint is loaded; its weights are divided by sigmoid(1), so that the network '
                      'computes what it computed with BN (fold_bn=False leaves them).')
        super()._load_from_state_dict(state_dict, prefix, *args)
