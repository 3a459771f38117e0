"""Representative Batch Normalization: Gao et al., CVPR 2021 (paper rbn).

https://openaccess.thecvf.com/content/CVPR2021/html/Gao_Representative_Batch_Normalization_With_Feature_Calibration_CVPR_2021_paper.html
"""

import torch
from torch import Tensor

from mmnorm.core import BN, MEAN, STD, Calibration, calibrate, calibrated_moments

from .arguments import FLAG, checked, one_of
from .base import PlaneNorm
from .gates import fold_initial_gate
from .passes import beside_saving_hooks

STATISTICS = ('channel_mean', 'channel_std', 'spatial_mean', 'spatial_std')


class RBN(PlaneNorm):
    """Representative BN (rbn, Eq. 5 and 9): BN between a centering and a scaling calibration of each instance.

    ``x_cm = x + center_weight * K_m``, normalized by BN to x_s, then multiplied by
    ``sigmoid(scale_weight * K_s + scale_bias)``, where K_m is a statistic of x and K_s one of x_s. Running statistics
    are those of x_cm. The three control parameters are (C,), initialized to 0, 0 and 1.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        center_stat, scale_stat (str): K_m and K_s (rbn, Table 3): 'channel_mean' (mu_c, default), 'channel_std'
            (sigma_c; as ``scale_stat`` it makes RBN*), over each channel of a sample; 'spatial_mean' (mu_s),
            'spatial_std' (sigma_s), over the channels at each position. A deviation is sqrt(variance + eps).
        center, scale (bool): Whether to make that calibration; one alone is a row of rbn's Table 2. Default True.
        fold_bn (bool): When a BN checkpoint is loaded, divide its weight by sigmoid(1), which is what the scaling
            calibration starts from, so that the network computes what the BN network computed. Default True.

    Raises:
        ValueError: Unknown statistic.
    """

    control_parameters = dict(center_weight=0.0, scale_weight=0.0, scale_bias=1.0)
    center_weight: Tensor
    scale_weight: Tensor
    scale_bias: Tensor
    mark_values = dict(center_statistic=STATISTICS, scale_statistic=STATISTICS)
    norm_eval_note = (
        'Both calibrations, gamma and beta train on each sample; the normalization between them uses '
        'running statistics that stay as they were loaded.'
    )

    @checked(center_stat=one_of(*STATISTICS), scale_stat=one_of(*STATISTICS), center=FLAG, scale=FLAG, fold_bn=FLAG)
    def __init__(
        self,
        num_features: int,
        *args,
        center_stat: str = 'channel_mean',
        scale_stat: str = 'channel_mean',
        center: bool = True,
        scale: bool = True,
        fold_bn: bool = True,
        **kwargs,
    ) -> None:
        self.center_stat, self.scale_stat, self.center, self.scale = center_stat, scale_stat, center, scale
        self.fold_bn = fold_bn
        super().__init__(num_features, *args, **kwargs)

    @property
    def sees_padding(self):
        by_channel = any(self.calibrates(what, 'channel') for what in ('center', 'scale'))
        return by_channel or self.running_mean is None

    def marks(self):
        return {
            f'{what}_statistic': STATISTICS.index(getattr(self, f'{what}_stat')) if getattr(self, what) else 0
            for what in ('center', 'scale')
        }

    def control_shape(self, name):
        made = self.center if name == 'center_weight' else self.scale
        return (self.num_features,) if made else None

    def statistics(self, mean, var, count):
        shift = self._centering(mean, var)
        # x + w K_m shifts each instance, which its variance does not see
        batch_mean, batch_var = self.batch_statistics(mean + shift, var, count)
        mu, (gamma, beta) = batch_mean - shift, self.gamma_beta
        if self.calibrates('scale', 'spatial'):
            return mu, batch_var, 1.0, 0.0
        if not self.scale:
            return mu, batch_var, gamma, beta
        if self.scale_stat == 'channel_mean':
            k_s = (mean - mu) * torch.rsqrt(batch_var + self.eps)
        else:
            k_s = torch.sqrt(var / (batch_var + self.eps) + self.eps)
        return mu, batch_var, gamma * torch.sigmoid(torch.addcmul(self.scale_bias, self.scale_weight, k_s)), beta

    def blend(self, x):
        if (self.center and self.center_stat != 'channel_mean') or self.calibrates('scale', 'spatial'):
            return None
        gate = (self.scale_weight, self.scale_bias) if self.scale else None
        gate_eps = self.eps if self.scale and self.scale_stat == 'channel_std' else None
        center = self.center_weight if self.center else None
        return self.blended(x, [BN], center=center, gate=gate, gate_eps=gate_eps)

    def _centering(self, mean, var):
        """``center_weight * K_m`` on the plane."""
        if not self.calibrates('center', 'channel'):
            return 0
        k_m = mean if self.center_stat == 'channel_mean' else torch.sqrt(var + self.eps)
        if not self.by_batch or self.spans_ranks():
            return self.center_weight * k_m
        # BN takes off what all samples are shifted by: without that part center_weight's gradient is the same, and not
        # a small difference of sums as large as |mean| / std
        common = k_m.detach().mean(0)
        return self.center_weight * (k_m - common) + self.center_weight.detach() * common

    def normalize(self, x):
        takes_var = self.by_batch or 'channel_std' in (self.center_stat, self.scale_stat)
        what = self._by_position()
        if what is None:
            return self.on_plane(x, self.statistics, self.blend, takes_var)
        return calibrate(x, beside_saving_hooks(self.statistics), self.eps, what, self.learned())

    def _by_position(self):
        """The calibrations by statistics over the channels; None where both, if they are made, are by channel."""
        center, gate = (
            0 if not self.calibrates(what, 'spatial') else MEAN if statistic == 'spatial_mean' else STD
            for what, statistic in (('center', self.center_stat), ('scale', self.scale_stat))
        )
        if not (center or gate):
            return None
        of_center = self.center_weight if center else None
        of_gate = (self.scale_weight, self.scale_bias, self.weight, self.bias) if gate else ()
        return Calibration(center, gate, self.eps, of_center, *of_gate)

    # a BN checkpoint; running statistics are those of x_cm

    def from_bn(self, tensors):
        return fold_initial_gate(self, 'scale_bias', tensors) if self.fold_bn and self.scale else tensors

    def _tracked_plane(self, x):
        what = self._by_position()
        if what is None:
            mean, var = super()._tracked_plane(x)
        else:
            mean, var = (moment.double() for moment in calibrated_moments(x, what)[1:])
        return mean + self._centering(mean, var), var

    def calibrates(self, what: str, kind: str) -> bool:
        """Whether the layer makes a calibration ('center', 'scale') by a statistic of a kind ('channel', 'spatial')."""
        return getattr(self, what) and getattr(self, f'{what}_stat').startswith(kind)

    def extra_repr(self):
        parts = [f'{name}_stat={getattr(self, name + "_stat")}' for name in ('center', 'scale') if getattr(self, name)]
        return ', '.join([super().extra_repr(), *parts])


class SyncRBN(RBN):
    """:class:`RBN` with its batch statistics over all ranks. For arguments see there."""

    sync = True
