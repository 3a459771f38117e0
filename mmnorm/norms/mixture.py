"""Mixtures of the statistics of several scopes by learned ratios, which can be hardened (paper sn)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import FLAG, checked, integer
from .base import PlaneNorm
from .checks import check_groups

IN, LN, BN = range(3)  # the order of the weights
NAMES = ('IN', 'LN', 'BN')


class Mixture(PlaneNorm):
    """A normalizer whose mean and variance are mixed of those of IN, LN and BN by softmax weights.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        groups, batch_stat, hard: See :class:`~mmnorm.norms.sn.SN`.

    Raises:
        ValueError: ``groups`` does not divide the channels.
    """

    control_parameters = dict(mean_weight=1.0, var_weight=1.0)
    mean_weight: Tensor
    var_weight: Tensor

    @checked(groups=integer(1), batch_stat=FLAG, hard=FLAG)
    def __init__(
        self, num_features: int, *args, groups: int = 1, batch_stat: bool = True, hard: bool = False, **kwargs
    ) -> None:
        self.groups, self.batch_stat, self.hard = groups, batch_stat, False
        check_groups(type(self).__name__, groups, num_features, 'groups')
        super().__init__(num_features, *args, **kwargs)
        if hard:
            self.harden()

    def control_shape(self, name):
        sources = 3 if self.batch_stat else 2
        return (sources,) if self.groups == 1 else (self.groups, sources)

    def mix(self, weight: Tensor, values: Sequence[Tensor], used: list[int], first: int) -> Tensor:
        """``sum(ratio * value)`` over the scopes that take part.

        Args:
            weight (Tensor): Of which the ratios are the softmax, (3,) or (groups, 3).
            values (sequence[Tensor]): One for each scope that takes part, broadcasting to (N, C).
            used (list[int]): These scopes, as :meth:`used_scopes` gives them.
            first (int): The first scope that exists.
        """
        ratios = self._normalized(weight[..., first:] if first else weight).unbind(-1)
        if self.groups > 1:
            ratios = [ratio.repeat_interleave(self.num_features // self.groups) for ratio in ratios]
        *rest, (share, value) = zip((ratios[k - first] for k in used), values)
        total = share * value  # from the smallest tensor to the largest
        for share, value in reversed(rest):
            total = torch.addcmul(total, share, value)
        return total

    def used_scopes(self, first: int = IN) -> list[int]:
        """Which of IN, LN, BN take part, of those from ``first`` on."""
        if not self.hard:
            return list(range(first, self.mean_weight.shape[-1]))
        if first not in self._picked:  # kept, because a GPU is waited for here
            picks = [weight[..., first:].argmax(-1).flatten() + first for weight in (self.mean_weight, self.var_weight)]
            self._picked[first] = sorted(set(torch.cat(picks).tolist()))
        return self._picked[first]

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
        return self.hard and self.batch_stat and self.used_scopes() == [BN]

    @property
    def used_statistics(self):
        return slice(None) if BN in self.used_scopes() else slice(0)

    def _normalized(self, weight):
        return F.one_hot(weight.argmax(-1), weight.shape[-1]).to(weight) if self.hard else weight.softmax(-1)

    def _one_value_each(self, x):
        return self.batch_stat and super()._one_value_each(x)

    def reset_parameters(self):
        super().reset_parameters()
        self._picked = {}

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._picked = {}

    def extra_repr(self):
        return f'{super().extra_repr()}, groups={self.groups}, batch_stat={self.batch_stat}, hard={self.hard}'


def ratios(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The ratios of every SN layer of a network.

    Args:
        model (nn.Module): A network or a layer.

    Returns:
        dict[str, dict[str, Tensor]]: Layer name to ``mean`` and ``var``, the softmaxed weights in the order IN, LN, BN.
    """
    return {name: dict(zip(('mean', 'var'), m.ratios())) for name, m in model.named_modules() if isinstance(m, Mixture)}


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
