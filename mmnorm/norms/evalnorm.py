"""EvalNorm: Singh and Shrivastava, ICCV 2019, https://arxiv.org/abs/1904.06031 (paper evalnorm)."""

from math import prod

import torch
from torch import Tensor, nn

from mmnorm.core import BN

from . import estimate
from .arguments import FLAG, NONE, checked, integer, one_of
from .batch_size import MODES, BatchSizeRule
from .passes import differentiated, keeping_buffers, recomputing


class EN(BatchSizeRule):
    """EvalNorm (evalnorm, Eq. 5 and 6): BN in training, statistics corrected for the batch's own share in evaluation.

    - Evaluation: each sample, of moments m and v, is normalized by ``mean = alpha m + (1 - alpha) mu_e`` and
      ``var = beta v + (1 - beta) var_e + beta (1 - beta) (m - mu_e)^2``, where mu_e and var_e are the running
      statistics; with gradients as without.
    - Held (in evaluation mode while the network trains, as norm_eval=True gives) and with gradients enabled: exactly BN
      by its running statistics.
    - Training: exactly torch's BN, to the bit.

    ``alpha`` and ``beta`` are buffers, one of each per layer, in the state dict; as other buffers they are averaged
    over ranks by SyncStatisticsHook (or mmengine's SyncBuffersHook). Any BN checkpoint loads unchanged.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`; momentum 0 keeps the running statistics.
        mode (str): 'rule', alpha = beta = 1 / B^2 (default); 'simple', 1 / B; 'online', estimated while training,
            starting from the rule; 'offline', estimated on a finished network by :func:`estimate_offline`.
        batch_size (int): B, the samples that training normalizes together (in a RoI head: of RoIs). Default None: what
            training saw, a running mean that is in the state dict; passes without gradients, as those that recollect
            statistics, are no training. With neither, evaluation is BN's, and says so.
        virtual_batch_size (int): Training normalizes each run of so many samples by itself (evalnorm, Section 4.1:
            normalization batches smaller than SGD's); the running statistics take the mean over the runs.
        held (bool): Whether evaluation mode with gradients enabled means that the layer is held. Default None: if
            ``eval()`` followed ``train()`` without a forward pass between them, until either is called again.

    The paper leaves open how its Table 2 (c) uses fixed statistics. ``frozen=True`` normalizes training batches by the
    running ones (the standard paradigm); ``momentum=0`` with ``requires_grad=False`` normalizes them by their own.

    Raises:
        ValueError: Unknown mode, or a batch size below 1.
    """

    control_buffers = BatchSizeRule.control_buffers | dict(squared_gradients=0.0)  # AdaGrad's
    norm_eval_note = 'It then computes exactly what BN does with its running statistics, and estimates nothing.'
    evaluation_note = (
        'If the network only evaluates, with gradients (a saliency map, an adversarial example, a forgotten no_grad), '
        'this is not what EvalNorm evaluates by: set held=False in its norm_cfg, or call eval() again after a pass.'
    )

    @checked(
        mode=one_of(*MODES),
        batch_size=integer(1) | NONE,
        virtual_batch_size=integer(1) | NONE,
        held=FLAG | NONE,
    )
    def __init__(
        self,
        num_features: int,
        *args,
        mode: str = 'rule',
        batch_size: int | None = None,
        virtual_batch_size: int | None = None,
        held: bool | None = None,
        **kwargs,
    ) -> None:
        self.virtual_batch_size, self.held = virtual_batch_size, held
        super().__init__(num_features, *args, mode=mode, batch_size=batch_size, **kwargs)
        self.estimate_every = estimate.ONLINE_INTERVAL if mode == 'online' else 0  # training batches; 0: never
        self.batches_seen = 0

    def reset_parameters(self):
        super().reset_parameters()
        self.batches_seen = 0

    def control_shape(self, name):
        return (2,) if name == 'squared_gradients' else ()

    @property
    def sees_padding(self):
        return self.running_mean is None or self.knows_batch_size()

    def statistics(self, mean, var, count):
        if self.by_batch:
            return *self.batch_statistics(mean, var, count), *self.gamma_beta
        return *self.evaluated(mean, var), *self.gamma_beta

    def blend(self, x):
        return self.blended(x, [BN]) if self.by_batch and not self.virtual_batch_size else None

    def evaluated(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The corrected mean and variance of each sample (evalnorm, Eq. 5 and 6) from its moments, (N, C)."""
        mu_e, var_e = self.held_statistics(mean.dtype)
        alpha, beta = (share.to(mean.dtype, copy=torch.is_grad_enabled()) for share in (self.alpha, self.beta))
        distance = mean - mu_e
        between = torch.addcmul(beta, beta, beta, value=-1)  # beta (1 - beta)
        return (torch.addcmul(mu_e, alpha, distance), torch.lerp(var_e, var, beta).addcmul(distance.square(), between))

    def normalize(self, x):
        if self.by_batch and (x.numel() or self.spans_ranks()):
            return self._train(x)
        held = self.is_held and differentiated() and not _exporting()
        if not x.numel() or held or not self.knows_batch_size():
            return self.running_affine(x)
        return super().normalize(x)

    def _train(self, x):
        on_plane = self.spans_ranks() or self.virtual_batch_size
        if not on_plane:
            self.see_batch_size(len(x))
        elif self.spans_ranks() and len(x) and self.learns:
            self._known = True  # how many samples all ranks have only the device knows: some, whoever asks later
        if self.estimate_every and self.learns:
            estimate.step_if_due(self, x)
        if on_plane:
            return super().normalize(x)
        if recomputing():
            with keeping_buffers(self):  # torch's own code counts and tracks
                return nn.BatchNorm2d.forward(self, x)
        return nn.BatchNorm2d.forward(self, x)

    def _one_value_each(self, x):
        size = len(x)
        if self.virtual_batch_size and size:
            size = size % self.virtual_batch_size or min(size, self.virtual_batch_size)
        return size * prod(x.shape[2:]) == 1

    def extra_repr(self):
        return f'{super().extra_repr()}, virtual_batch_size={self.virtual_batch_size}'


class SyncEN(EN):
    """:class:`EN` with batches normalized over all ranks; B counts the samples of all. For arguments see there."""

    sync = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.virtual_batch_size is not None:
            raise ValueError(
                f'{type(self).__name__}: virtual_batch_size makes normalization batches smaller than those of a '
                'process, synchronization larger; choose one of the two'
            )


def _exporting():
    # newer than the oldest torch that works
    return getattr(torch.compiler, 'is_exporting', bool)() or torch.jit.is_tracing()
