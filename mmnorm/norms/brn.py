"""Batch Renormalization (baseline of papers evalnorm and sn)."""
import torch

from .base import PlaneNorm


class BRN(PlaneNorm):
    """Batch Renormalization: BN whose batch statistics are corrected towards the running ones, within limits.

    ``y = weight * ((x - mu_B) / sigma_B * r + d) + bias`` with ``r = clip(sigma_B / sigma, 1 / r_max, r_max)`` and
    ``d = clip((mu_B - mu) / sigma, -d_max, d_max)``, where mu and sigma = sqrt(var + eps) are the running statistics
    before this batch; no gradient passes r and d. In evaluation it is BN.

    Activation checkpointing recomputes r and d when the running statistics have moved on; torch.compile leaves the
    layer's training as it is.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variances. Default 1e-5.
        momentum (float or None): As in BN. Default 0.1.
        r_max, d_max (float): Limits. Default 2.0 and 1.0 (evalnorm); sn used 1.5 and 0.5.
        warmup (int): Steps, counted by ``num_batches_tracked``, over which the limits grow linearly from 1 and 0 (BN)
            to r_max and d_max. Default 5000.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.

    Raises:
        ValueError: ``r_max`` is below 1, or ``d_max`` or ``warmup`` below 0.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, r_max=2., d_max=1., warmup=5000, frozen=False):
        if r_max < 1 or d_max < 0 or warmup < 0:
            raise ValueError(f'{type(self).__name__}: r_max={r_max}, d_max={d_max}, warmup={warmup}; r_max must be at '
                             'least 1, d_max and warmup at least 0')
        super().__init__(num_features, eps, momentum, frozen)
        self.r_max, self.d_max, self.warmup = r_max, d_max, warmup

    def forward(self, x):
        if self.training:
            return self._train(x)
        self._check_input(x)
        self._note_norm_eval()
        return self.running_affine(x)

    # AOTAutograd recomputes r and d in the backward pass from running statistics that are updated by then
    @torch.compiler.disable
    def _train(self, x):
        return super().forward(x)

    def statistics(self, mean, var, count):
        progress = (self.num_batches_tracked / max(self.warmup, 1)).clamp(max=1) if self.warmup else 1.
        sigma = torch.sqrt(self.running_var + self.eps)
        mu = self.running_mean.clone()
        mean, var = self.batch_statistics(mean, var, count)
        r_max, d_max = 1 + progress * (self.r_max - 1), progress * self.d_max
        r = (torch.sqrt(var.detach() + self.eps) / sigma).clamp(1 / r_max, r_max)
        d = ((mean.detach() - mu) / sigma).clamp(-d_max, d_max)
        return mean, var, self.weight * r, torch.addcmul(self.bias, self.weight, d)

    def extra_repr(self):
        return f'{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}, warmup={self.warmup}'
