"""The normalization batch size B of a training, and EvalNorm's rules that set alpha and beta by it (paper evalnorm)."""

import torch
from torch import Tensor

from .arguments import NONE, checked, integer, one_of
from .base import PlaneNorm
from .checks import warn_once
from .passes import differentiated, recomputing

#: alpha = beta = B ** exponent in these modes; the others estimate them, starting from the first.
RULES = {'rule': -2, 'simple': -1}
MODES = (*RULES, 'online', 'offline')


class BatchSizeRule(PlaneNorm):
    """A normalizer that takes note of B, and follows a rule with alpha and beta.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`.
        mode, batch_size: See :class:`~mmnorm.norms.evalnorm.EN`.

    Raises:
        ValueError: Unknown mode, or a batch size below 1.
    """

    control_buffers = dict(alpha=0.0, beta=0.0, mean_batch_size=0.0)
    alpha: Tensor
    beta: Tensor
    mean_batch_size: Tensor
    #: Whether passes teach the layer, where that is not to be told by whether gradients follow them.
    taught: bool | None = None

    @checked(mode=one_of(*MODES), batch_size=integer(1) | NONE)
    def __init__(self, num_features: int, *args, mode: str = 'rule', batch_size: int | None = None, **kwargs) -> None:
        self.mode, self.batch_size = mode, batch_size
        super().__init__(num_features, *args, **kwargs)
        self._known = False  # whether B is
        self._only_size: int | None = None  # the only one that training had so far
        self._learn_batch_size(batch_size)

    @property
    def is_estimated(self) -> bool:
        """Whether alpha and beta are estimated."""
        return self.mode not in RULES

    @property
    def learns(self) -> bool:
        """Whether a pass teaches the layer B, alpha and beta: one of training, which gradients follow; the first one.

        Who only recollects running statistics (update_bn, precise BN, adaptation to other data) has gradients off.
        """
        taught = differentiated() and not recomputing() if self.taught is None else self.taught
        return taught and self.training and self.track_running_stats and self.running_mean is not None

    def see_batch_size(self, samples):
        if self.batch_size is not None or not self.learns:
            return
        if torch.compiler.is_compiling():
            self._only_size = None  # not looked at: the compiler would make a graph for each
        elif not torch.is_tensor(samples):
            if samples in (0, self._only_size):
                return
            self._only_size = None if self._known else samples  # another such batch needs no further look
            self._known = True
        before = self.mean_batch_size.clone()
        samples = torch.as_tensor(samples).to(before)
        seen = torch.where(before > 0, torch.lerp(before, samples, 0.1), samples)
        self._follow_rule(torch.where(samples > 0, seen, before), before == 0)

    def _learn_batch_size(self, size=None, starts=True):
        """Take a size for B (None: that of the buffer), from which alpha and beta start, unless they are estimates."""
        self._follow_rule(
            self.mean_batch_size if size is None else torch.as_tensor(size).to(self.mean_batch_size),
            torch.as_tensor(starts),
        )
        self._only_size = None
        self._known = size is not None or not self.mean_batch_size.is_meta and bool(self.mean_batch_size > 0)

    @torch.no_grad()
    def _follow_rule(self, size, starts):
        """Set B, and alpha and beta by the rule; where they are estimated only if that starts now."""
        rule = torch.where(size > 0, size.clamp(min=1).pow(RULES.get(self.mode, RULES['rule'])), 0)
        for value in (self.alpha, self.beta):
            # into views, since what a compiled graph copies into a float64 number itself is lost
            value.detach().copy_(rule if self.mode in RULES else torch.where(starts.to(rule) > 0, rule, value))
        self.mean_batch_size.detach().copy_(size)

    def knows_batch_size(self) -> bool:
        """Whether the layer knows B; if not, that is said once."""
        if torch.compiler.is_compiling():
            return True  # no value decides about a graph: an unknown B has alpha = beta = 0, which is BN all the same
        # asked again while it is unknown: who copies buffers, as averaged models do, copies no attributes
        self._known = self._known or not self.mean_batch_size.is_meta and bool(self.mean_batch_size > 0)
        if not self._known:
            warn_once(
                f'{type(self).__name__} evaluates as BN: neither batch_size nor training has set its '
                'normalization batch size. Set batch_size in its norm_cfg to that of the training.'
            )
        return self._known

    def reset_parameters(self):
        super().reset_parameters()
        if 'mean_batch_size' in self._buffers:  # torch's constructor comes here before
            self._learn_batch_size(self.batch_size)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        from_bn = prefix + 'alpha' not in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)
        loaded = torch.zeros(2) if from_bn else torch.stack([self.alpha, self.beta])
        self._learn_batch_size(self.batch_size, from_bn)
        used = torch.stack([self.alpha, self.beta])
        # shares averaged over ranks are not those of the average size, but close
        close = used.is_meta or torch.allclose(loaded.to(used), used, rtol=0.05)
        if prefix + 'running_mean' in state_dict and not close:
            warn_once(
                f'{type(self).__name__}: '
                + ('a BN checkpoint is loaded' if from_bn else 'alpha and beta of the checkpoint are replaced')
                + f', and evaluation corrects its statistics with alpha={float(self.alpha):.3g} and '
                f'beta={float(self.beta):.3g}, which mode={self.mode!r} and B={float(self.mean_batch_size):.3g} give: '
                'it computes something else than what was loaded'
                + (', as EvalNorm is meant to.' if from_bn else ". mode='offline' keeps what was estimated."),
                key=f'{type(self).__name__} {from_bn} alpha',
            )

    def extra_repr(self):
        return f'{super().extra_repr()}, mode={self.mode}, batch_size={self.batch_size}'
