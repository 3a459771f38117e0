"""Moving Average Batch Normalization: Yan et al., ICLR 2020, https://arxiv.org/abs/2001.06838."""

import torch
from torch import Tensor

from .arguments import NONE, checked, integer, number
from .checks import warn_once
from .passes import as_in_first_pass, recomputing
from .steps import SteppedNorm

_WARMUP_OF_R = 1000  # steps, at least: so the authors' code
_MOST = 5.0  # what r is clipped to, and 1 over it


class MABN(SteppedNorm):
    """Moving Average BN: the quadratic mean of each channel, averaged over the last steps, and its gradient as well.

    No mean is taken off: the convolution before should have centered weights (``conv_cfg=dict(type='ConvMABN')``). With
    S the mean square of a channel, averaged over the batches of the last m steps, E the moving average of S, z = x /
    sqrt(S + eps), r = sqrt(S + eps) / sqrt(E + eps) and g = r * weight * dL/dy:

        y = weight * r * z + bias
        dL/dx = (g - z * A) / sqrt(S + eps),        A the mean of g * z, averaged over the batches of the last m steps

    r is clipped to [1/5, 5] and without gradient. The backward pass is by design not the derivative of the forward
    pass: A is its part of the batch alone. In the first ``warmup`` steps, and until the window is full, S and A are the
    batch's; in the first 1000 at least, r is 1. Evaluation has E in the place of S, a constant affine: ``running_var``
    is E, of a mean square, and ``running_mean`` stays 0, so that whatever folds BN folds it. The batches are those of
    each GPU. This follows the authors' code; what differs is that steps of the optimizer count, not forward passes, for
    which and for what happens after a resume see :class:`~mmnorm.norms.steps.SteppedNorm`.

    A layer that is called again before a backward pass, as in a head that levels share, normalizes each call by itself,
    with a warning. It is for 1 to 4 images per GPU where evaluation has to cost what BN's does.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`. ``momentum`` is that of E, by default 0.02. Without running
            statistics each batch is normalized by itself.
        window (int): m, the current step and those before it. Default 16: as 32 images by 2 on a GPU.
        warmup (int): Steps. Default 100.
    """

    is_bn_in_evaluation = True
    bessel = False  # a mean square has no correction

    @checked(eps=number(least=0), momentum=number(0, 1) | NONE, window=integer(1), warmup=integer(0))
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.02,
        *args,
        window: int = 16,
        warmup: int = 100,
        **kwargs,
    ) -> None:
        self.length = window - 1
        super().__init__(num_features, eps, momentum, *args, **kwargs)
        self.window, self.warmup = window, warmup

    def statistics(self, mean, var, count):
        square = var + mean.square()
        return *self.batch_statistics(torch.zeros_like(square), square, count), *self.gamma_beta

    def normalize(self, x):
        return self._train(x) if self.uses_steps(x) else super().normalize(x)

    # the window is kept in Python
    @torch.compiler.disable
    def _train(self, x):
        elements = x.numel() // self.num_features

        def statistics(mean, var, count):
            square = (var + mean.square()).mean(0)
            met = () if recomputing() else self._meet(square.detach())
            batch, past, r = as_in_first_pass(self, square, square, met)
            self.history.keep(batch, square)
            average = _Averaged.apply(square, batch, past, elements, self.eps)
            zero = torch.zeros_like(average)
            self.track(zero, average.detach(), elements, len(x))
            gamma, beta = self.gamma_beta
            return zero, average, gamma * r, beta

        return self.on_plane(x, statistics)

    def _meet(self, square):
        """A batch, those of the earlier steps that count with it, and r."""
        past = self.begin_call()
        if len(past) < self.length or self._taken < self.warmup:
            past = []
        if self._taken < max(self.warmup, _WARMUP_OF_R):
            return _Batch(square), past, 1.0
        held = self.held_statistics(square.dtype)[1]
        r = ((_average(square, past) + self.eps) / (held + self.eps)).sqrt()
        return _Batch(square), past, r.clamp(1 / _MOST, _MOST)

    def _tracked_plane(self, x):
        mean, var = super()._tracked_plane(x)
        return torch.zeros_like(mean), var + mean.square()

    def from_bn(self, tensors):
        if 'steps' not in tensors and 'running_mean' in tensors:
            warn_once(
                f'{type(self).__name__}: a BN checkpoint is loaded, and no mean is taken off here: the network '
                'computes something else than it did with BN, and has to be trained. The running mean goes into the '
                'mean square.'
            )
            mean = tensors['running_mean']
            tensors = tensors | dict(running_mean=torch.zeros_like(mean))
            if 'running_var' in tensors:
                tensors['running_var'] = tensors['running_var'] + mean.square()
        return tensors

    def extra_repr(self):
        return f'{super().extra_repr()}, window={self.window}, warmup={self.warmup}'


class _Batch:
    """What a batch leaves: its mean square, and after its backward pass the mean of g * z; (C,) each."""

    def __init__(self, square: Tensor) -> None:
        self.square = square
        self.product: Tensor | None = None


def _average(square, past):
    return torch.stack([square, *(batch.square for batch in past)]).mean(0)


class _Averaged(torch.autograd.Function):
    """The average of a batch's mean square and those before; backward, that of the means of g * z.

    The gradient of ``z = x / sqrt(S + eps)`` by S is ``-elements / (2 (S + eps))`` times the mean of g * z.
    """

    @staticmethod
    def forward(ctx, square, batch, past, elements, eps):
        average = _average(square, past)
        ctx.factor = (average + eps) * (-2 / elements)
        ctx.batch, ctx.past = batch, past
        return average

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError(
                'the backward pass of MABN in training is not the derivative of its forward pass, and no derivative '
                'follows from it: gradients of gradients (create_graph=True) need another norm, or evaluation mode'
            )
        ctx.batch.product = ctx.factor * grad
        products = [batch.product for batch in (ctx.batch, *ctx.past) if batch.product is not None]
        return torch.stack(products).mean(0) / ctx.factor, None, None, None, None
