"""Representative Batch Normalization (paper rbn)."""
import torch
from torch import nn

from mmnorm.core import normalize

from .base import PlaneNorm, warn_once

_STATISTICS = ('channel_mean', 'channel_std', 'spatial_mean', 'spatial_std')


class RBN(PlaneNorm):
    """Representative BN (rbn, Eq. 5 and 9): BN between a centering and a scaling calibration of each instance.

    ``x_cm = x + center_weight * K_m``, normalised by BN to x_s, then multiplied by
    ``sigmoid(scale_weight * K_s + scale_bias)``, where K_m is a statistic of x and K_s one of x_s. Running statistics
    are those of x_cm. The three control parameters are (C,), initialised to 0, 0 and 1.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): As in BN. Default 0.1.
        center_stat, scale_stat (str): K_m and K_s (rbn, Table 3): 'channel_mean' (mu_c, default), 'channel_std'
            (sigma_c; as ``scale_stat`` it makes RBN*), over each channel of a sample; 'spatial_mean' (mu_s),
            'spatial_std' (sigma_s), over the channels at each position. The spatial ones need passes of their own over
            the tensor. A deviation is sqrt(variance + eps).
        center, scale (bool): Whether to make that calibration; one alone is a row of rbn's Table 2. Default True.
        fold_bn (bool): When a BN checkpoint is loaded, divide its weight by sigmoid(1), which is what the scaling
            calibration starts from, so that the network computes what the BN network computed. Default True.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.

    Raises:
        ValueError: Unknown statistic.
    """

    norm_eval_note = ('Both calibrations, gamma and beta train on each sample; the normalization between them uses '
                      'running statistics that stay as they were loaded.')

    def __init__(self, num_features, eps=1e-5, momentum=0.1, center_stat='channel_mean', scale_stat='channel_mean',
                 center=True, scale=True, fold_bn=True, frozen=False):
        for argument, value in (('center_stat', center_stat), ('scale_stat', scale_stat)):
            if value not in _STATISTICS:
                raise ValueError(f'{type(self).__name__}: {argument}={value!r} is unknown; these would do: '
                                 f'{", ".join(_STATISTICS)}')
        self.center_stat, self.scale_stat, self.center, self.scale = center_stat, scale_stat, center, scale
        super().__init__(num_features, eps, momentum, frozen)
        self.fold_bn = fold_bn

    def _reset_control_parameters(self):
        if self.center:
            self.center_weight = nn.Parameter(torch.zeros(self.num_features))
        if self.scale:
            self.scale_weight = nn.Parameter(torch.zeros(self.num_features))
            self.scale_bias = nn.Parameter(torch.ones(self.num_features))

    def forward(self, x):
        self._check_input(x)
        self._note_norm_eval()
        centered = self._spatially_centered(x)
        takes_var = self.training or 'channel_std' in (self.center_stat, self.scale_stat)
        y = normalize(centered, self.statistics, self.eps, takes_var)
        if self.scale and self.scale_stat.startswith('spatial'):
            statistic = self._spatial(self.scale_stat, y)
            gate = self._gate(statistic, *(self._per_channel(p, y) for p in (self.scale_weight, self.scale_bias)))
            weight, bias = self._per_channel(self.weight, y), self._per_channel(self.bias, y)
            y = (y * gate * weight + bias).to(x.dtype)
        return y

    def statistics(self, mean, var, count):
        shift = self._channel_shift(mean, var)
        # x + w K is a shift of each instance, which its variance does not see
        batch_mean, batch_var = self.batch_statistics(mean + shift, var, count)
        mu = batch_mean - shift
        if not self.scale:
            return mu, batch_var, self.weight, self.bias
        if self.scale_stat.startswith('spatial'):
            one = torch.ones_like(self.weight)
            return mu, batch_var, one, torch.zeros_like(one)
        if self.scale_stat == 'channel_mean':
            statistic = (mean - mu) * torch.rsqrt(batch_var + self.eps)
        else:
            statistic = torch.sqrt(var / (batch_var + self.eps) + self.eps)
        return mu, batch_var, self.weight * self._gate(statistic, self.scale_weight, self.scale_bias), self.bias

    def _tracked_plane(self, x):
        mean, var = super()._tracked_plane(self._spatially_centered(x))
        return mean + self._channel_shift(mean, var), var

    def _spatially_centered(self, x):
        """x after a centering calibration by a statistic of each position; x itself if there is none."""
        if not (self.center and self.center_stat.startswith('spatial')):
            return x
        return (x + self._per_channel(self.center_weight, x) * self._spatial(self.center_stat, x)).to(x.dtype)

    def _channel_shift(self, mean, var):
        """What the centering calibration adds to each channel of a sample, on the plane."""
        if not (self.center and self.center_stat.startswith('channel')):
            return 0
        return self.center_weight * (mean if self.center_stat == 'channel_mean' else torch.sqrt(var + self.eps))

    def _gate(self, statistic, weight, bias):
        return torch.sigmoid(torch.addcmul(bias, weight, statistic))

    def _spatial(self, statistic, x):
        """Mean or deviation over the channels, (N, 1, *S), in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = x.mean(1, keepdim=True)
        return mean if statistic == 'spatial_mean' else torch.sqrt((x - mean).square().mean(1, True) + self.eps)

    def _per_channel(self, parameter, x):
        return parameter.view(-1, *[1] * (x.dim() - 2))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        control = ('center_weight', 'scale_weight', 'scale_bias')
        weight = state_dict.get(prefix + 'weight')
        from_bn = weight is not None and not any(prefix + name in state_dict for name in control)
        if self.fold_bn and self.scale and from_bn:
            state_dict[prefix + 'weight'] = weight / torch.sigmoid(torch.ones_like(weight))
            warn_once('RBN: a BN checkpoint is loaded; its weights are divided by sigmoid(1), so that the network '
                      'computes what it computed with BN (fold_bn=False leaves them).')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        parts = [f'{name}_stat={getattr(self, name + "_stat")}' for name in ('center', 'scale') if getattr(self, name)]
        return ', '.join([super().extra_repr(), *parts])


class SyncRBN(RBN):
    """:class:`RBN` with its batch statistics over all ranks. For arguments see there."""

    sync = True
