"""Switchable Normalization: Luo et al., TPAMI 2019, https://arxiv.org/abs/1907.10473 (paper sn)."""
from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmnorm.core import normalize, pool

from .base import PlaneNorm
from .checks import check_groups, warn_once

IN, LN, BN = range(3)  # the order of the weights
NAMES = ('IN', 'LN', 'BN')


class SN(PlaneNorm):
    """Switchable Normalization (sn, Eq. 3 to 5): IN, LN and BN, mixed by learned softmax weights.

    Means and variances have weights of their own, ``mean_weight`` and ``var_weight``, (3,) each in the order IN, LN,
    BN, shared by all channels and initialized to 1. Variances are biased, as in the paper. In evaluation BN's part
    uses running statistics; IN and LN are those of each sample. An input (N, C) has no IN: the softmax is over the
    others.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`. The authors' detection and segmentation code uses momentum 0.003.
        groups (int): Cut the channels into groups with weights of their own, of shape (groups, 3); LN stays over all
            channels. Default 1, with weights of shape (3,).
        batch_stat (bool): Whether BN takes part. False leaves two weights, IN and LN: the (8,1) setting of one sample
            per GPU. Default True.
        hard (bool): Hard ratios: the largest of each softmax counts 1, the others 0 and are not computed. The weights
            are buffers then. Default False; :func:`harden` sets it on a trained network.

    Raises:
        ValueError: ``groups`` does not divide the channels.
    """

    control_parameters = dict(mean_weight=1., var_weight=1.)
    mean_weight: Tensor
    var_weight: Tensor
    norm_eval_note = ('IN and LN parts, softmax weights, gamma and beta train; BN\'s part uses running statistics '
                      'that stay as they were loaded.')

    def __init__(self, num_features: int, *args, groups: int = 1, batch_stat: bool = True, hard: bool = False,
                 **kwargs) -> None:
        self.groups, self.batch_stat, self.hard = groups, batch_stat, False
        check_groups(type(self).__name__, groups, num_features, 'groups')
        super().__init__(num_features, *args, **kwargs)
        if hard:
            self.harden()

    def control_shape(self, name):
        sources = 3 if self.batch_stat else 2
        return (sources, ) if self.groups == 1 else (self.groups, sources)

    def statistics(self, mean, var, count, first=IN):
        used = self._used(first)
        scopes = {IN: lambda: (mean, var),
                  LN: lambda: pool(mean, var, 1),
                  BN: lambda: self.batch_statistics(mean, var, count)}
        means, variances = zip(*(scopes[k]() for k in used))
        w, u = (self._shares(weight, used, first) for weight in (self.mean_weight, self.var_weight))
        return _mix(w, means), _mix(u, variances), *self.gamma_beta

    def normalize(self, x):
        if self.is_bn_in_evaluation and not self.by_batch:
            return self.running_affine(x)
        if x.dim() > 2 and prod(x.shape[2:]) == 1:
            warn_once(f'{self._get_name()}({self.num_features}) normalizes an input with one value per channel of a '
                      'sample, as after a global pool: IN and LN are unstable there (sn, Table XI). Use BN, or no '
                      'norm, in that place.')
        statistics = partial(self.statistics, first=IN if x.dim() > 2 else LN)
        return normalize(x, statistics, self.eps, self._parameters.values())

    def _shares(self, weight, used, first):
        """The ratio of each scope that takes part, a scalar or, with groups, (C,)."""
        ratios = self._normalized(weight[..., first:] if first else weight).unbind(-1)
        if self.groups > 1:
            ratios = [ratio.repeat_interleave(self.num_features // self.groups) for ratio in ratios]
        return [ratios[k - first] for k in used]

    def _normalized(self, weight):
        return F.one_hot(weight.argmax(-1), weight.shape[-1]).to(weight) if self.hard else weight.softmax(-1)

    # hard ratios

    def ratios(self) -> tuple[Tensor, Tensor]:
        """Softmaxed weights (hardened: 0 and 1), mean's and variance's, each of the shape of the weights."""
        return self._normalized(self.mean_weight.detach()), self._normalized(self.var_weight.detach())

    def harden(self) -> None:
        """From now on take the argmax of each softmax; the weights become buffers."""
        self.hard = True
        self._picked: dict[int, list[int]] = {}
        for name in self.control_parameters:
            value = getattr(self, name).detach()
            self._parameters.pop(name, None)
            self.register_buffer(name, value)

    @property
    def is_bn_in_evaluation(self):
        return self.hard and self.batch_stat and self._used(IN) == [BN]

    @property
    def used_statistics(self):
        return slice(None) if BN in self._used(IN) else slice(0)

    def _used(self, first):
        """Which of IN, LN, BN take part; ``first`` is the first that exists."""
        if not self.hard:
            return list(range(first, self.mean_weight.shape[-1]))
        if first not in self._picked:  # kept, because a GPU is waited for here
            picks = [weight[..., first:].argmax(-1).flatten() + first for weight in (self.mean_weight, self.var_weight)]
            self._picked[first] = sorted(set(torch.cat(picks).tolist()))
        return self._picked[first]

    def _one_value_each(self, x):
        return self.batch_stat and super()._one_value_each(x)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._picked = {}

    def extra_repr(self):
        return f'{super().extra_repr()}, groups={self.groups}, batch_stat={self.batch_stat}, hard={self.hard}'


def _mix(shares, values):
    """``sum(share * value)``, from the smallest tensor to the largest."""
    *rest, (share, value) = zip(shares, values)
    total = share * value
    for share, value in reversed(rest):
        total = torch.addcmul(total, share, value)
    return total


class SyncSN(SN):
    """:class:`SN` with BN's part over all ranks; IN and LN are those of each sample. For arguments see there."""

    sync = True


def ratios(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The ratios of every SN layer of a network.

    Args:
        model (nn.Module): A network or a layer.

    Returns:
        dict[str, dict[str, Tensor]]: Layer name to ``mean`` and ``var``, the softmaxed weights in the order IN, LN, BN.
    """
    return {name: dict(zip(('mean', 'var'), m.ratios())) for name, m in model.named_modules() if isinstance(m, SN)}


def harden(model: nn.Module) -> dict[str, tuple[list[str], list[str]]]:
    """Fix every SN layer of a network at the argmax of its ratios (sn, hard ratios).

    Args:
        model (nn.Module): A network or a layer; changed in place.

    Returns:
        dict[str, tuple[list, list]]: Layer name to what it picked for mean and variance, one name per group.
    """
    picks = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SN):
            layer.harden()
            mean, var = ([NAMES[i] for i in weight.argmax(-1).flatten().tolist()]
                         for weight in (layer.mean_weight, layer.var_weight))
            picks[name] = mean, var
    return picks
