"""Switchable Normalization (paper sn)."""
import functools
from math import prod

import torch
from torch import nn
from torch.nn import functional as F

from mmnorm.core import normalize, pool

from .base import PlaneNorm, check_groups, warn_once

_IN, _LN, _BN = range(3)  # the order of the weights


class SN(PlaneNorm):
    """Switchable Normalization (sn, Eq. 3 to 5): IN, LN and BN, mixed by learned softmax weights.

    Means and variances have weights of their own, ``mean_weight`` and ``var_weight``, (3,) each in the order IN, LN,
    BN, shared by all channels and initialised to 1. Variances are biased, as in the paper. In evaluation BN's part
    uses running statistics; IN and LN are those of each sample. An input (N, C) has no IN: the softmax is over the
    others.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the mixed variance. Default 1e-5.
        momentum (float or None): As in BN. The authors' detection and segmentation code uses 0.003. Default 0.1.
        groups (int): Cut the channels into groups with weights of their own, of shape (groups, 3); LN stays over all
            channels. Default 1, with weights of shape (3,).
        batch_stat (bool): Whether BN takes part. False leaves two weights, IN and LN: the (8,1) setting of one sample
            per GPU. Default True.
        hard (bool): Hard ratios: the largest of each softmax counts 1, the others 0 and are not computed. The weights
            are buffers then. Default False; :func:`harden` sets it on a trained network.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.

    Raises:
        ValueError: ``groups`` does not divide the channels.
    """

    norm_eval_note = ('IN and LN parts, softmax weights, gamma and beta train; BN\'s part uses running statistics '
                      'that stay as they were loaded.')

    def __init__(self, num_features, eps=1e-5, momentum=0.1, groups=1, batch_stat=True, hard=False, frozen=False):
        self.groups, self.batch_stat, self.hard = groups, batch_stat, False
        super().__init__(num_features, eps, momentum, frozen)
        if hard:
            self.harden()

    def _reset_control_parameters(self):
        check_groups(self, self.groups, self.num_features, 'groups')
        sources = 3 if self.batch_stat else 2
        shape = (sources, ) if self.groups == 1 else (self.groups, sources)
        self.mean_weight = nn.Parameter(torch.ones(shape))
        self.var_weight = nn.Parameter(torch.ones(shape))

    @property
    def used_statistics(self):
        return slice(None) if _BN in self._used(_IN) else slice(0)

    def forward(self, x):
        self._check_input(x)
        if not self.training and self.is_bn():
            return self.running_affine(x)
        if _BN in self._used(_IN):
            self._note_norm_eval()
        if x.dim() > 2 and prod(x.shape[2:]) == 1:
            warn_once(f'{self._get_name()}({self.num_features}) normalises an input with one value per channel of a '
                      'sample, as after a global pool: IN and LN are unstable there (sn, Table XI). Use BN, or no '
                      'norm, in that place.')
        return normalize(x, functools.partial(self.statistics, first=_IN if x.dim() > 2 else _LN), self.eps)

    def statistics(self, mean, var, count, first=_IN):
        used = self._used(first)
        sources = {_IN: (mean, var)}
        if _LN in used:
            sources[_LN] = pool(mean, var, 1)
        if _BN in used:
            sources[_BN] = self.batch_statistics(mean, var, count)
        mixed = []
        for moment, weight in enumerate((self.mean_weight, self.var_weight)):
            ratios = self._normalized(weight[..., first:] if first else weight).unbind(-1)
            if self.groups > 1:
                ratios = [ratio.repeat_interleave(self.num_features // self.groups) for ratio in ratios]
            *rest, last = used  # from the smallest tensor to the largest
            total = ratios[last - first] * sources[last][moment]
            for source in reversed(rest):
                total = torch.addcmul(total, ratios[source - first], sources[source][moment])
            mixed.append(total)
        return *mixed, self.weight, self.bias

    def ratios(self):
        """Softmaxed weights (hardened: 0 and 1), mean's and variance's, each of the shape of the weights."""
        return self._normalized(self.mean_weight.detach()), self._normalized(self.var_weight.detach())

    def harden(self):
        """From now on take the argmax of each softmax; the weights become buffers."""
        self.hard, self._picked = True, {}
        for name in ('mean_weight', 'var_weight'):
            value = getattr(self, name).detach()
            self._parameters.pop(name, None)
            self.register_buffer(name, value)

    def is_bn(self):
        """Whether the layer is hardened and has picked BN for everything: a constant affine in evaluation."""
        return self.hard and self.batch_stat and self._used(_IN) == [_BN]

    def _normalized(self, weight):
        if self.hard:
            return F.one_hot(weight.argmax(-1), weight.shape[-1]).to(weight)
        return weight.softmax(-1)

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


class SyncSN(SN):
    """:class:`SN` with BN's part over all ranks; IN and LN are those of each sample. For arguments see there."""

    sync = True


def ratios(model):
    """The ratios of every SN layer of a network.

    Args:
        model (nn.Module): A network or a layer.

    Returns:
        dict[str, dict[str, Tensor]]: Layer name to ``mean`` and ``var``, the softmaxed weights in the order IN, LN, BN.
    """
    return {name: dict(zip(('mean', 'var'), m.ratios())) for name, m in model.named_modules() if isinstance(m, SN)}


def harden(model):
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
            picks[name] = tuple([('IN', 'LN', 'BN')[i] for i in weight.argmax(-1).flatten().tolist()]
                                for weight in (layer.mean_weight, layer.var_weight))
    return picks
