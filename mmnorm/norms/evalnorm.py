"""EvalNorm: Singh and Shrivastava, ICCV 2019, https://arxiv.org/abs/1904.06031 (paper evalnorm)."""
from math import prod

import torch
from torch import Tensor, nn

from . import estimate
from .base import PlaneNorm
from .checks import check_choice, check_positive, warn_once

#: alpha = beta = B ** exponent in these modes; the others estimate them.
RULES = {'rule': -2, 'simple': -1}
MODES = (*RULES, 'online', 'offline')


class EN(PlaneNorm):
    """EvalNorm (evalnorm, Eq. 5 and 6): BN in training, statistics corrected for the batch's own share in evaluation.

    - Evaluation (evaluation mode without gradients): each sample, of moments m and v, is normalized by
      ``mean = alpha m + (1 - alpha) mu_e`` and ``var = beta v + (1 - beta) var_e + beta (1 - beta) (m - mu_e)^2``,
      where mu_e and var_e are the running statistics.
    - Held (evaluation mode with gradients enabled, as norm_eval=True gives in training): exactly BN by its running
      statistics.
    - Training: exactly torch's BN, to the bit.

    ``alpha`` and ``beta`` are buffers, one of each per layer, in the state dict; as other buffers they are averaged
    over ranks by SyncStatisticsHook (or mmengine's SyncBuffersHook). Any BN checkpoint loads unchanged.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`; momentum 0 keeps the running statistics.
        mode (str): 'rule', alpha = beta = 1 / B^2 (default); 'simple', 1 / B; 'online', estimated while training,
            starting from the rule; 'offline', estimated on a finished network by :func:`estimate_offline`.
        batch_size (int): B, the samples that training normalizes together (in a RoI head: of RoIs). Default None: what
            training saw, a running mean that is in the state dict. With neither, evaluation is BN's, and says so.
        virtual_batch_size (int): Training normalizes each run of so many samples by itself (evalnorm, Section 4.1:
            normalization batches smaller than SGD's); the running statistics take the mean over the runs.

    The paper leaves open how its Table 2 (c) uses fixed statistics. ``frozen=True`` normalizes training batches by the
    running ones (the standard paradigm); ``momentum=0`` with ``requires_grad=False`` normalizes them by their own.

    Raises:
        ValueError: Unknown mode, or a batch size below 1.
    """

    control_buffers = dict(alpha=0., beta=0., mean_batch_size=0., squared_gradients=0.)  # the last are AdaGrad's
    alpha: Tensor
    beta: Tensor
    mean_batch_size: Tensor
    squared_gradients: Tensor
    norm_eval_note = 'It is exactly BN by its running statistics then, and estimates nothing.'

    def __init__(self, num_features: int, *args, mode: str = 'rule', batch_size: int | None = None,
                 virtual_batch_size: int | None = None, **kwargs) -> None:
        check_choice(self, 'mode', mode, MODES)
        for argument, value in (('batch_size', batch_size), ('virtual_batch_size', virtual_batch_size)):
            if value is not None:
                check_positive(self, argument, value)
        self.mode, self.batch_size, self.virtual_batch_size = mode, batch_size, virtual_batch_size
        super().__init__(num_features, *args, **kwargs)
        self.estimate_every = estimate.ONLINE_INTERVAL if mode == 'online' else 0  # training batches; 0: never
        self.batches_seen = 0
        self._known = False  # whether B is
        self._only_size: int | None = None  # the only one that training had so far
        self._learn_batch_size(batch_size)

    def control_shape(self, name):
        return (2, ) if name == 'squared_gradients' else ()

    def statistics(self, mean, var, count):
        if self.by_batch:
            return *self.batch_statistics(mean, var, count), *self.gamma_beta
        return *self.evaluated(mean, var), *self.gamma_beta

    def evaluated(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The corrected mean and variance of each sample (evalnorm, Eq. 5 and 6) from its moments, (N, C)."""
        mu_e, var_e, alpha, beta = (s.to(mean.dtype) for s in (
            self.running_mean, self.running_var, self.alpha, self.beta))
        distance = mean - mu_e
        between = torch.addcmul(beta, beta, beta, value=-1)  # beta (1 - beta)
        return (torch.addcmul(mu_e, alpha, distance),
                torch.lerp(var_e, var, beta).addcmul(distance.square(), between))

    def normalize(self, x):
        if self.by_batch and (x.numel() or self.spans_ranks()):
            return self._train(x)
        held = torch.is_grad_enabled() and not _exporting()
        if not x.numel() or held or not self._knows_batch_size():
            return self.running_affine(x)
        return super().normalize(x)

    def _train(self, x):
        on_plane = self.spans_ranks() or self.virtual_batch_size
        if not on_plane:
            self.see_batch_size(len(x))
        if self.training and self.estimate_every:
            estimate.step_if_due(self, x)
        return super().normalize(x) if on_plane else nn.BatchNorm2d.forward(self, x)

    # B, and what the rule makes of it

    @torch.no_grad()
    def see_batch_size(self, samples):
        if self.batch_size is not None or not self.training or not torch.is_tensor(samples) and samples in (
                0, self._only_size):
            return
        if not torch.is_tensor(samples):
            self._only_size = None if self._known else samples  # another such batch needs no further look
            self._known = True
        before = self.mean_batch_size.clone()
        samples = torch.as_tensor(samples).to(before)
        seen = torch.where(before > 0, torch.lerp(before, samples, 0.1), samples)
        self._follow_rule(torch.where(samples > 0, seen, before), before == 0)

    def _learn_batch_size(self, size=None, starts=True):
        """Take a size for B (None: that of the buffer), from which alpha and beta start, unless they are estimates."""
        self._follow_rule(self.mean_batch_size if size is None else torch.as_tensor(size).to(self.mean_batch_size),
                          torch.as_tensor(starts))
        self._only_size = None
        self._known = size is not None or not self.mean_batch_size.is_meta and bool(self.mean_batch_size > 0)

    @torch.no_grad()
    def _follow_rule(self, size, starts):
        """Set B, and alpha and beta by the rule; where they are estimated only if that starts now."""
        rule = torch.where(size > 0, size.clamp(min=1).pow(RULES.get(self.mode, RULES['rule'])), 0)
        for value in (self.alpha, self.beta):
            value.copy_(rule if self.mode in RULES else torch.where(starts.to(rule) > 0, rule, value))
        self.mean_batch_size.copy_(size)

    def _knows_batch_size(self):
        # asked again while it is unknown: who copies buffers, as averaged models do, copies no attributes
        self._known = self._known or bool(self.mean_batch_size > 0)
        if not self._known:
            warn_once(f'{type(self).__name__} evaluates as BN: neither batch_size nor training has told it the '
                      'normalization batch size. Set batch_size in its norm_cfg to that of the training.')
        return self._known

    def reset_parameters(self):
        super().reset_parameters()
        if 'mean_batch_size' in self._buffers:  # torch's constructor comes here before
            self._learn_batch_size(self.batch_size)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        from_bn = prefix + 'alpha' not in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._learn_batch_size(self.batch_size, from_bn)

    def _one_value_each(self, x):
        size = len(x)
        if self.virtual_batch_size and size:
            size = size % self.virtual_batch_size or min(size, self.virtual_batch_size)
        return size * prod(x.shape[2:]) == 1

    @property
    def is_estimated(self) -> bool:
        """Whether alpha and beta are estimated."""
        return self.mode not in RULES

    def extra_repr(self):
        return (f'{super().extra_repr()}, mode={self.mode}, batch_size={self.batch_size}, '
                f'virtual_batch_size={self.virtual_batch_size}')


class SyncEN(EN):
    """:class:`EN` with batches normalized over all ranks; B counts the samples of all. For arguments see there."""

    sync = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.virtual_batch_size is not None:
            raise ValueError('SyncEN: virtual_batch_size makes normalization batches smaller than those of a process, '
                             'SyncEN larger; choose one of the two')


def _exporting():
    # newer than the oldest torch that works
    return getattr(torch.compiler, 'is_exporting', bool)() or torch.jit.is_tracing()
