"""Mixtures of the statistics of several scopes by learned ratios, which can be hardened (paper sn)."""

import math
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmnorm.core import BN, IN, LN

from .arguments import FLAG, NONE, checked, integer, number
from .base import PlaneNorm
from .checks import called, check_groups, warn_once
from .marks import put_marks
from .sw import SW

NAMES = ('IN', 'LN', 'BN')  # the order of the weights, that of core's scopes
SATURATED = 128.0  # exp(-128) is 0 in float32


class Mixture(PlaneNorm):
    """A normalizer whose mean and variance are mixed of those of IN, LN and BN by softmax weights.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        groups, batch_stat, hard, bn_share, unbiased: See :class:`~mmnorm.norms.sn.SN`.

    Raises:
        ValueError: ``groups`` does not divide the channels, or ``bn_share`` is out of range or without BN's part.
    """

    control_parameters = dict(mean_weight=1.0, var_weight=1.0)
    mean_weight: Tensor
    var_weight: Tensor
    _picked_from: tuple = ()

    @checked(groups=integer(1), batch_stat=FLAG, hard=FLAG, bn_share=number(most=1, above=0) | NONE, unbiased=FLAG)
    def __init__(
        self,
        num_features: int,
        *args,
        groups: int = 1,
        batch_stat: bool = True,
        hard: bool = False,
        bn_share: float | None = None,
        unbiased: bool = False,
        **kwargs,
    ) -> None:
        self.groups, self.batch_stat, self.hard, self.bn_share = groups, batch_stat, False, bn_share
        self.unbiased = unbiased
        if bn_share is not None and not batch_stat:
            raise ValueError(f"{type(self).__name__}: bn_share is BN's, which batch_stat=False leaves out")
        check_groups(type(self).__name__, groups, num_features, 'groups')
        super().__init__(num_features, *args, **kwargs)
        if hard:
            self.harden()

    def control_shape(self, name):
        sources = 3 if self.batch_stat else 2
        return (sources,) if self.groups == 1 else (self.groups, sources)

    def marks(self):
        return dict(hardened=int(self.hard), unbiased_instances=int(self.unbiased))

    @property
    def bessel(self):
        return not self.unbiased  # else the variances of the instances are corrected

    def shares(self, first: int = IN) -> tuple[Tensor, ...]:
        """Mean's and variance's ratios of the scopes from ``first`` on, each (scopes,) or (groups, scopes)."""
        return self._normalized(torch.stack((self.mean_weight, self.var_weight))[..., first:]).unbind()

    def mix(self, ratio: Tensor, values: Sequence[Tensor], used: list[int], first: int) -> Tensor:
        """``sum(ratio * value)`` over the scopes that take part.

        Args:
            ratio (Tensor): As :meth:`shares` gives it.
            values (sequence[Tensor]): One for each scope that takes part, broadcasting to (N, C).
            used (list[int]): These scopes, as :meth:`used_scopes` gives them.
            first (int): The first scope that exists.
        """
        ratios = ratio.unbind(-1)
        if self.groups > 1:
            ratios = tuple(share.repeat_interleave(self.num_features // self.groups) for share in ratios)
        *rest, (share, value) = zip((ratios[k - first] for k in used), values)
        total = share * value  # from the smallest tensor to the largest
        for share, value in reversed(rest):
            total = torch.addcmul(total, share, value)
        return total

    def weights_of(self, used: list[int], first: int) -> tuple[Tensor, Tensor] | None:
        """Mean's and variance's weights of the scopes that take part, of whose softmax the ratios are."""
        if self.selects and len(used) == 1:
            return None
        mean, var = (weight[..., first:] if first else weight for weight in (self.mean_weight, self.var_weight))
        if self.selects:  # what a softmax makes 0 and 1 of
            mean, var = (self._normalized(weight)[..., [k - first for k in used]].log() for weight in (mean, var))
        return mean, var

    @property
    def picks(self) -> bool:
        """Whether each ratio is 0 or 1."""
        return self.hard

    @property
    def selects(self) -> bool:
        """Whether now what is picked is computed alone."""
        return self.hard

    def used_scopes(self, first: int = IN) -> list[int]:
        """Which of IN, LN, BN take part, of those from ``first`` on."""
        return self._picked_scopes(first) if self.selects else self._scopes(first)

    def _scopes(self, first):
        return list(range(first, self.mean_weight.shape[-1]))

    def _picked_scopes(self, first=IN):
        if self.mean_weight.is_meta:
            return self._scopes(first)
        if not torch.compiler.is_compiling() and self._picked_from != self._weights_seen():
            self._pick()
        if first not in self._picked:
            picks = [_whole(w)[..., first:].argmax(-1).flatten() + first for w in (self.mean_weight, self.var_weight)]
            self._picked[first] = sorted(set(torch.cat(picks).tolist()))
        return self._picked[first]

    def _pick(self) -> None:
        """Find what each softmax picks; now, because a GPU is waited for, and an exporter knows no values."""
        self._picked: dict[int, list[int]] = {}
        if self.picks and not self.mean_weight.is_meta:
            self._picked_from = self._weights_seen()
            for first in (IN, LN):
                self._picked_scopes(first)

    def _weights_seen(self):
        """What tells that the weights are others, or were changed in place, without a look at their values."""
        weights = self.mean_weight, self.var_weight
        return tuple((id(weight), None if weight.is_inference() else weight._version) for weight in weights)

    def train(self, mode: bool = True) -> 'Mixture':
        super().train(mode)
        self._pick()  # averaged models change the weights through .data, of which no tensor tells
        return self

    def ratios(self) -> tuple[Tensor, Tensor]:
        """Softmaxed weights (hardened: 0 and 1), mean's and variance's, each of the shape of the weights."""
        return self._normalized(self.mean_weight.detach()), self._normalized(self.var_weight.detach())

    def harden(self) -> None:
        """From now on take the argmax of each softmax; the weights become buffers."""
        self.hard = True
        for name in self.control_parameters:
            value = getattr(self, name).detach()
            self._parameters.pop(name, None)
            self.register_buffer(name, value)
        put_marks(self, self.mean_weight.device)
        self._pick()

    def from_bn(self, tensors):
        if any(name in tensors for name in self.control_parameters):
            return tensors
        norm, share = type(self).__name__, self.bn_share
        if share is None:
            warn_once(
                f'{norm}: a BN checkpoint is loaded, and its ratios start equal, as in the paper'
                + (
                    ': the network does not compute what it computed with BN, and has to be trained. '
                    'bn_share=1 in norm_cfg computes that, with ratios that never train; less, such as 0.999, trains, '
                    'from nearly the same; 1/3 is the equal start without this warning.'
                    if self.batch_stat
                    else ", without BN's part (batch_stat=False): the network does not compute what it computed with "
                    'BN, cannot start as that, and has to be trained.'
                )
            )
            return tensors
        if share == 1:
            warn_once(
                f'{norm}: a BN checkpoint is loaded; with bn_share=1 it computes what it computed with BN, and its '
                'ratios, which select BN to the last bit, never train.'
            )
        weights = self.weights_of_share(share)
        return tensors | {
            name: getattr(self, name).new_tensor(weights).expand_as(getattr(self, name))
            for name in self.control_parameters
        }

    @property
    def is_bn_in_evaluation(self):
        return self.picks and self.batch_stat and self._picked_scopes() == [BN]

    @property
    def used_statistics(self):
        return slice(None) if BN in self.used_scopes() else slice(0)

    def _normalized(self, weight):
        # in half precision the ratios would not sum to 1
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return F.one_hot(weight.argmax(-1), weight.shape[-1]).to(weight) if self.selects else self.soft_ratios(weight)

    def soft_ratios(self, weight: Tensor) -> Tensor:
        """The ratios that are not selected, (..., scopes), of weights as many."""
        return weight.softmax(-1)

    @staticmethod
    def weights_of_share(share: float) -> list[float]:
        """Weights of IN, LN and BN that give BN a share and the others the same each."""
        return weights_of_bn_share(share)

    def check(self, x):
        super().check(x)
        if self.unbiased and prod(x.shape[2:]) == 1:
            raise ValueError(
                f'{called(self)}: unbiased=True divides by the number of positions minus 1, got an input of shape '
                f'{tuple(x.shape)}, which has one: use unbiased=False there'
            )

    def instance_variance(self, var: Any, count: int) -> Any:
        """The variance of each instance, (N, C), that those of all scopes are made of, from the biased one."""
        return var * (count / (count - 1)) if self.unbiased else var

    def _tracked_plane(self, x):
        mean, var = super()._tracked_plane(x)
        return mean, self.instance_variance(var, prod(x.shape[2:]))

    def _one_value_each(self, x):
        return self.batch_stat and super()._one_value_each(x)

    def reset_parameters(self):
        super().reset_parameters()
        self._pick()

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._pick()

    def extra_repr(self):
        return f'{super().extra_repr()}, groups={self.groups}, batch_stat={self.batch_stat}, hard={self.hard}'


def weights_of_bn_share(share: float) -> list[float]:
    """Weights of IN, LN and BN of whose softmax BN has a share and the others the same each.

    Args:
        share (float): In (0, 1]. With 1 the ratios are (0, 0, 1) to the last bit, and have no gradient.

    Raises:
        ValueError: It is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f'the share of BN must be above 0 and at most 1, got {share}')
    return [0.0, 0.0, SATURATED if share == 1 else math.log(2 * share / (1 - share))]


def ratios(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The ratios of every SN and SW layer of a network.

    Args:
        model (nn.Module): A network or a layer.

    Returns:
        dict[str, dict[str, Tensor]]: Layer name to ``mean`` and ``var``, the softmaxed weights in the order IN, LN, BN;
        of SW, means and covariances, in the order BW, IW, or BW, IW, LN, or BW, IW, BN, IN, LN.
    """
    mixtures = {name: m for name, m in model.named_modules() if isinstance(m, (Mixture, SW))}
    return {name: dict(zip(('mean', 'var'), layer.ratios())) for name, layer in mixtures.items()}


def harden(model: nn.Module) -> dict[str, tuple[list[str], list[str]]]:
    """Fix every SN layer of a network at the argmax of its ratios (sn, hard ratios).

    Args:
        model (nn.Module): A network or a layer; changed in place.

    Returns:
        dict[str, tuple[list, list]]: Layer name to what it picked for mean and variance, one name per group.
    """
    picks = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Mixture):
            layer.harden()
            mean, var = (
                [NAMES[i] for i in weight.argmax(-1).flatten().tolist()]
                for weight in (layer.mean_weight, layer.var_weight)
            )
            picks[name] = mean, var
    return picks


def _whole(tensor):
    """All of a parameter that may be a DTensor."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor
