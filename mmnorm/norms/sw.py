"""Switchable Whitening: Pan et al., ICCV 2019, https://arxiv.org/abs/1904.09739 (of xbn, Table A2, and of sn)."""

from math import prod

import torch
from torch import Tensor

from mmnorm.core import like, products, whiten

from .arguments import FLAG, checked, integer
from .checks import warn_once
from .passes import beside_saving_hooks
from .roots import identity_like, inverse_root
from .whitening import Whitening

#: What is mixed, by the number of members, in the order of the ratios.
MEMBERS = {2: ('BW', 'IW'), 3: ('BW', 'IW', 'LN'), 5: ('BW', 'IW', 'BN', 'IN', 'LN')}


class SW(Whitening):
    """Switchable Whitening (Eq. 4 to 6): means and covariances mixed by learned softmax weights, then whitening.

    Members are whitening over the batch (BW) and of each sample (IW); and the standardizations LN, or BN, IN and LN,
    whose covariance is the diagonal of variances. Means and covariances have weights of their own, ``sw_mean_weight``
    and ``sw_var_weight``, shared by all channels and initialized to 1. What is mixed is whitened in groups of channels,
    by the inverse square root of the mixed covariance. In evaluation BW's and BN's part is the running mean and the
    running covariance, ``running_cov``; the others are those of each sample. Names are those of the authors' code.

    All variances are biased, and each member has a ratio of its own, as in the paper: the authors' code has LN's
    variance unbiased, and with 5 members gives the variances of BN and IN the ratios of BW and IW.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen, num_groups,
        channels_per_group, iterations: See :class:`~mmnorm.norms.whitening.Whitening`. The groups are of 16 channels,
            or of the largest divisor of C below. The authors' momentum is 0.01 in this sense.
        members (int): 2 (default): BW and IW; 3: LN too; 5: BW, IW, BN, IN and LN.
        tie_weight (bool): The covariances have the weights of the means, ``sw_mean_weight``, as the authors' code
            offers; there is no ``sw_var_weight`` then. Default False.

    Raises:
        ValueError: The groups do not divide the channels, or ``members`` is another number.
    """

    control_parameters = dict(sw_mean_weight=1.0, sw_var_weight=1.0)
    control_buffers = dict(running_cov=0.0)
    sw_mean_weight: Tensor
    sw_var_weight: Tensor  # not there where it is tied
    usual_size = 16
    sees_padding = True
    norm_eval_note = (
        "The samples' parts, softmax weights, gamma and beta train; the batch's part uses a running mean and "
        'covariance that stay as they were loaded.'
    )

    @checked(members=integer(1), tie_weight=FLAG)
    def __init__(self, num_features: int, *args, members: int = 2, tie_weight: bool = False, **kwargs) -> None:
        if members not in MEMBERS:
            raise ValueError(f'{type(self).__name__}({num_features}): members must be 2, 3 or 5, got {members}')
        self.members, self.tie_weight = members, tie_weight
        super().__init__(num_features, *args, **kwargs)

    def control_shape(self, name):
        if name not in self.control_parameters:
            return super().control_shape(name)
        return None if self.tie_weight and name == 'sw_var_weight' else (self.members,)

    def marks(self):
        return dict(
            switched_groups=0 if self.running_mean is not None else self.num_groups,  # which running_cov shows
            switched_iterations=0 if self.iterations == 5 else self.iterations,
        )

    def ratios(self) -> tuple[Tensor, Tensor]:
        """Softmaxed weights, of means and of covariances, (members,) each, in the order of :data:`MEMBERS`."""
        with torch.no_grad():
            return self._ratios()

    def _ratios(self):
        wide = torch.promote_types(self.sw_mean_weight.dtype, torch.float32)
        mean = self.sw_mean_weight.to(wide).softmax(0)
        return mean, mean if self.tie_weight else self.sw_var_weight.to(wide).softmax(0)

    def normalize(self, x):
        samples, channels, *positions = x.shape
        groups, size = self.grouped
        length = prod(positions)
        if length == 1:
            warn_once(
                f'{type(self).__name__}({channels}) normalizes an input with one value per channel of a sample, as '
                'after a global pool, whose covariance is 0: use BN, or no norm, there.'
            )

        def statistics(mean, covariance):
            mean = mean.reshape(samples, groups, size)
            covariance = covariance.reshape(samples, groups, size, size)
            batch_mean, batch_covariance = self._of_batch(mean, covariance, length)
            identity = identity_like(batch_covariance)
            found = dict(BW=(batch_mean, batch_covariance), IW=(mean, covariance))
            if self.members == 5:
                found.update(BN=(batch_mean, batch_covariance * identity), IN=(mean, covariance * identity))
            if self.members > 2:
                layer_mean = mean.mean((1, 2), keepdim=True)
                variances = (covariance * identity).sum(3) + (mean - layer_mean).square()
                found.update(LN=(layer_mean, variances.mean((1, 2), keepdim=True)[..., None] * identity))
            mixed = []
            for ratios, values, own in zip(self._ratios(), zip(*found.values()), (mean, covariance)):
                total = sum(ratio * value for ratio, value in zip(ratios.to(own.dtype).unbind(), values))
                mixed.append(total.reshape(samples * groups, *own.shape[2:]))
            return mixed[0], inverse_root(mixed[1], self.eps, self.iterations)

        weight, bias, *weights = self.learned()
        y = whiten(
            x.reshape(samples, channels, length),
            (samples * groups, size, length),
            beside_saving_hooks(statistics),
            weight,
            bias,
            weights,
        )
        return like(y, x)

    def _of_batch(self, mean, covariance, length):
        """The mean, (G, D), and covariance, (G, D, D), over the samples; the running ones where these are used."""
        if not self.by_batch:
            return self.held_moments(mean.dtype)
        samples = len(mean)
        pooled = mean.sum(0) / max(samples, 1)
        pooled_covariance = (covariance + products(mean - pooled, covariance)).sum(0) / max(samples, 1)
        found, of_pairs, count, total = self.over_ranks(pooled, pooled_covariance, samples * length, samples)
        self.track_moments(found, of_pairs, count, total, of_pairs)
        return found, of_pairs

    def from_bn(self, tensors):
        if 'sw_mean_weight' not in tensors:
            warn_once(
                f'{type(self).__name__}: a BN checkpoint is loaded; its ratios start equal, as in the paper, and each '
                'sample is whitened beside the batch: the network does not compute what it computed with BN, and has '
                'to be trained.'
            )
        elif not self.tie_weight:  # a file of tied weights has one
            tensors = dict(sw_var_weight=tensors['sw_mean_weight']) | tensors
        return tensors | self.uncorrelated(tensors)

    def extra_repr(self):
        return f'{super().extra_repr()}, members={self.members}, tie_weight={self.tie_weight}'


class SyncSW(SW):
    """:class:`SW` with the batch's mean and covariance over all ranks. For arguments see there."""

    sync = True
