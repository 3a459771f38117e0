"""Switchable Normalization: Luo et al., TPAMI 2019, https://arxiv.org/abs/1907.10473 (paper sn)."""

from functools import partial
from math import prod

from mmnorm.core import pool

from .checks import warn_once
from .mixture import BN, IN, LN, Mixture


class SN(Mixture):
    """Switchable Normalization (sn, Eq. 3 to 5): IN, LN and BN, mixed by learned softmax weights.

    Means and variances have weights of their own, ``mean_weight`` and ``var_weight``, (3,) each in the order IN, LN,
    BN, shared by all channels and initialized to 1. Variances are biased, as in the paper (see ``unbiased``). In
    evaluation BN's part uses running statistics; IN and LN are those of each sample. An input (N, C) has no IN: the
    softmax is over the others.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`. The authors' detection and segmentation code uses momentum 0.003.
        groups (int): Cut the channels into groups with weights of their own, of shape (groups, 3); LN stays over all
            channels. Default 1, with weights of shape (3,).
        batch_stat (bool): Whether BN takes part. False leaves two weights, IN and LN: the (8,1) setting of one sample
            per GPU. Default True.
        hard (bool): Hard ratios: the largest of each softmax counts 1, the others 0 and are not computed. The weights
            are buffers then. Default False; :func:`harden` sets it on a trained network.
        bn_share (float): When a BN checkpoint is loaded, the share of BN in mean and variance, in (0, 1]. 1 computes
            what the BN network computed, but the ratios never train; with less, such as 0.999, they do. Default None:
            equal ratios, as the paper starts, and a warning that the network computes something else.
        unbiased (bool): Make the variances of all three of the unbiased variance of each instance, of L positions:
            L / (L - 1) of the biased one, as the authors' code does and their released weights want it. Default False,
            the paper's.

    Raises:
        ValueError: ``groups`` does not divide the channels, ``bn_share`` is out of range or without BN's part, or an
            input of one position with ``unbiased``.
    """

    norm_eval_note = (
        "IN and LN parts, softmax weights, gamma and beta train; BN's part uses running statistics "
        'that stay as they were loaded.'
    )

    def statistics(self, mean, var, count, first=IN):
        used, var = self.used_scopes(first), self.instance_variance(var, count)
        scopes = {
            IN: lambda: (mean, var),
            LN: lambda: pool(mean, var, 1),
            BN: lambda: self.batch_statistics(mean, var, count),
        }
        means, variances = zip(*(scopes[k]() for k in used))
        mixed = (self.mix(ratio, values, used, first) for ratio, values in zip(self.shares(first), (means, variances)))
        return *mixed, *self.gamma_beta

    def blend(self, x):
        first = IN if x.dim() > 2 else LN
        used = self.used_scopes(first)
        correction = self.instance_variance(1.0, prod(x.shape[2:]))
        return self.blended(x, used, ratios=self.weights_of(used, first), correction=correction)

    def normalize(self, x):
        if self.selects and self.is_bn_in_evaluation and not self.by_batch:
            return self.running_affine(x)
        if x.dim() > 2 and prod(x.shape[2:]) == 1:
            warn_once(
                f'{self._get_name()}({self.num_features}) normalizes an input with one value per channel of a '
                'sample, as after a global pool: IN and LN are unstable there (sn, Table XI). Use BN, or no '
                'norm, there.'
            )
        statistics = partial(self.statistics, first=IN if x.dim() > 2 else LN)
        return self.on_plane(x, statistics, self.blend)


class SyncSN(SN):
    """:class:`SN` with BN's part over all ranks; IN and LN are those of each sample. For arguments see there."""

    sync = True
