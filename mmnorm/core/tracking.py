"""Running statistics: how a batch moves them on, and how Batch Renormalization corrects a batch towards them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Running(NamedTuple):
    """BN's running statistics; called with a batch's they move on.

    Attributes:
        mean, var: (G,) each, modified in place; the variance is Bessel-corrected, as torch keeps it.
        batches: The number of batches so far, one integer, or None.
        momentum: The weight of the new value, or None for a plain average.
        since: The number of batches at which that average began.
        bessel: Whether the variance is to be corrected; False where an unbiased one is told.
        others: What else moves on as the mean does, such as whitening matrices.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    momentum: float | None
    since: int = 0
    bessel: bool = True
    others: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def __call__(
        self, mean: Tensor, var: Tensor, elements: float | Tensor, *others: Tensor, samples: int | Tensor = 0
    ) -> None:
        """Move on by a batch's mean and variance, (G,) each, over so many elements; a tensor may be 0, of none.

        The number of samples, which others are told as well, is of no concern here.
        """
        # in the type of the batch's statistics: buffers of half precision would round on the way
        dtype = torch.promote_types(mean.dtype, self.mean.dtype)
        held: Any = 1
        weight: Any = self.momentum
        if torch.is_tensor(elements):
            elements = elements.to(dtype)
            held = (elements > 0).any()
            correction: Any = elements / (elements - 1).clamp(min=1)
            weight = None if weight is None else weight * held.to(dtype)
        else:
            correction = elements / (elements - 1) if self.bessel else 1.0
        if self.batches is not None:
            self.batches.add_(held)
            if weight is None:
                weight = held / (self.batches - self.since).clamp(min=1).to(dtype)
        weight = 0.0 if weight is None else weight
        # Bessel-corrected as torch keeps it, so that BN checkpoints and ours are interchangeable
        var = var * correction if self.bessel else var
        for running, new in ((self.mean, mean), (self.var, var), *zip(self.others, others)):
            if running.dtype == dtype:
                running.lerp_(new.to(dtype), weight)
            else:
                running.copy_(torch.lerp(running.to(dtype), new, weight))


class Renorm(NamedTuple):
    """Batch Renormalization's r and d, as a function of a batch's statistics.

    Attributes:
        mean, var: The running statistics before the batch, (C,) each.
        batches: The number of batches before it, or None.
        warmup: So many batches after the first the limits have grown from 1 and 0 to r_max and d_max.
        since: At that number of batches and below it nothing is corrected.
        r_max, d_max: The limits.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    warmup: int
    since: int
    r_max: float
    d_max: float

    def __call__(self, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``r = clip(sigma_B / sigma, 1 / r_max, r_max)`` and ``d = clip((mu_B - mu) / sigma, -d_max, d_max)``."""
        r_max, d_max = self.limits(mean.dtype)
        sigma = torch.sqrt(self.var.to(mean.dtype) + eps)
        r = (torch.sqrt(var + eps) / sigma).clamp(1 / r_max, r_max)
        return r, ((mean - self.mean.to(mean.dtype)) / sigma).clamp(-d_max, d_max)

    def limits(self, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """The limits of r and of d at this number of batches."""
        progress: Any = 1.0
        if self.batches is not None:
            if self.warmup:
                progress = (self.batches.to(dtype) / self.warmup).clamp(max=1)
            if self.since:  # right after a reset there is nothing to correct towards
                progress = progress * (self.batches > self.since)
        return 1 + progress * (self.r_max - 1), progress * self.d_max
