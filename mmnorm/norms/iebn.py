"""Instance Enhancement BN: Liang et al., AAAI 2020, https://arxiv.org/abs/1908.04008 (of paper rbn, Table 1)."""

import torch
from torch import Tensor

from .arguments import FLAG, checked
from .base import PlaneNorm
from .gates import fold_initial_gate


class IEBN(PlaneNorm):
    """Instance Enhancement BN: BN whose weight is multiplied by a gate, of the mean of each channel of each sample.

    ``y = weight * sigmoid(weight_readjust * m + bias_readjust) * (x - mu) / sqrt(var + eps) + bias`` with m, the mean
    of the layer's input over the positions, and BN's mu and var. The two control parameters are (C,), initialized to 0
    and -1, so that the gate starts at 0.27; their names are those of the authors' code, whose weights load.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        fold_bn (bool): When a BN checkpoint is loaded, divide its weight by sigmoid(-1), which is what the gate starts
            from, so that the network computes what the BN network computed. Default True.
    """

    control_parameters = dict(weight_readjust=0.0, bias_readjust=-1.0)
    weight_readjust: Tensor
    bias_readjust: Tensor
    norm_eval_note = (
        'The gate of each sample, gamma and beta train; the normalization uses running statistics that stay as they '
        'were loaded.'
    )

    @checked(fold_bn=FLAG)
    def __init__(self, num_features: int, *args, fold_bn: bool = True, **kwargs) -> None:
        self.fold_bn = fold_bn
        super().__init__(num_features, *args, **kwargs)

    def statistics(self, mean, var, count):
        gate = torch.sigmoid(torch.addcmul(self.bias_readjust, self.weight_readjust, mean))
        gamma, beta = self.gamma_beta
        return *self.batch_statistics(mean, var, count), gamma * gate, beta

    def normalize(self, x):
        return self.on_plane(x, self.statistics, takes_var=self.by_batch)

    def from_bn(self, tensors):
        return fold_initial_gate(self, 'bias_readjust', tensors) if self.fold_bn else tensors


class SyncIEBN(IEBN):
    """:class:`IEBN` with its batch statistics over all ranks. For arguments see there."""

    sync = True
