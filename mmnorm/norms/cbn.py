"""Cross-Iteration Batch Normalization: Yao et al., CVPR 2021, https://arxiv.org/abs/2002.05712."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmnorm.core import BN, pool, spread

from .arguments import checked, integer
from .checks import called, warn_once
from .passes import may_be_repeated
from .steps import SteppedNorm


class CBN(SteppedNorm):
    """Cross-Iteration BN: BN by the statistics of the last steps' batches, carried to today's weights.

    With theta the parameters of the convolution before the layer, mu_s and nu_s the mean and the mean square of the
    batch of step s, each of a step s before the current one, t, is carried to the weights of now by first order, and
    the window's k steps count the same:

        mu_s(theta_t) = mu_s + dmu_s/dtheta_s (theta_t - theta_s),          nu_s(theta_t) likewise
        mu = mean over s of mu_s(theta_t),      nu = mean over s of max(nu_s(theta_t), mu_s(theta_t)^2)
        y = weight * (x - mu) / sqrt(nu - mu^2 + eps) + bias

    Gradients go through the current batch's statistics alone. Running statistics are those of the current batches, and
    evaluation is BN's, as in the authors' code; so is it that statistics are those of each GPU.

    The convolution is found in the graph of the layer's input: nothing has to be told or placed. Where there is none
    that trains (frozen; transposed; of computed weights, such as ConvWS) the layer is BN, and each such layer is named
    once in a warning. So is a layer that is called again before a backward pass, as in a head that levels
    share: with ``per_level`` each level has a window of its own. Memory: two tensors of the convolution's size for each
    earlier step; time: twice the gradient of its weights. For what counts as a step, and after a resume, see
    :class:`~mmnorm.norms.steps.SteppedNorm`. It is for 1 to 4 images per GPU, where BN's statistics are too noisy.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`. Without running statistics it is BN.
        window (int): k, the current step and those before it. Default 4; 1 is BN. ``buffer_num`` of the authors' code
            is one less.
        burnin (int): Steps in which the layer is BN, before the window begins. Default 0; in detection the paper took 8
            of 12 epochs.

    Raises:
        RuntimeError: A counted layer is in activation checkpointing, which leaves no graph to take derivatives from.
    """

    is_bn_in_evaluation = True

    @checked(window=integer(1), burnin=integer(0))
    def __init__(self, num_features: int, *args, window: int = 4, burnin: int = 0, **kwargs) -> None:
        self.length = window - 1
        super().__init__(num_features, *args, **kwargs)
        self.window, self.burnin = window, burnin

    def statistics(self, mean, var, count):
        return *self.batch_statistics(mean, var, count), *self.gamma_beta

    def blend(self, x):
        return self.blended(x, [BN])

    def normalize(self, x):
        if self.window == 1 or not self.uses_steps(x):
            return super().normalize(x)
        return self._train(x)

    @torch.compiler.disable
    def _train(self, x):
        if may_be_repeated():
            raise RuntimeError(
                f'{called(self)} is in activation checkpointing, or in hooks on saved tensors, where there is no graph '
                'to take the derivatives of its statistics from: leave it out of the checkpointing (with_cp=False)'
            )
        if self._taken < self.burnin:
            return super().normalize(x)
        theta = parameters_before(x)
        if not theta:
            name = called(self)
            warn_once(
                f'{name} is BN: its input is not that of a convolution with weights that train as they are, by which '
                'statistics of earlier steps could be carried to those of now.',
                key=f'without convolution {name}',
            )
            return super().normalize(x)
        past = [batch.carried(theta) for batch in self.begin_call()]

        def statistics(mean, var, count):
            own = self.batch_statistics(mean, var, count)
            self.history.keep(BatchAt.of(x, theta, *(value.detach() for value in own)), own[0])
            means, variances = zip(own, *past)
            mu, sigma2 = pool(torch.stack(means), torch.stack(variances), 0)
            return mu, sigma2, *self.gamma_beta

        return self.on_plane(x, statistics)

    def extra_repr(self):
        return f'{super().extra_repr()}, window={self.window}, burnin={self.burnin}'


class BatchAt(NamedTuple):
    """A batch's mean and variance, (C,), as functions of the parameters theta before them, to first order.

    That of the mean square is that of the variance too, with ``dvar = dnu - 2 mu dmu``, and no difference of squares is
    left in it. Both are kept as ``value(theta_s) - derivative theta_s`` and the derivative, in theta's shapes.
    """

    mean: Tensor
    constants: tuple[Tensor, ...]
    derivatives: tuple[list[Tensor], ...]

    @classmethod
    def of(cls, x: Tensor, theta: list[Tensor], mean: Tensor, var: Tensor) -> 'BatchAt':
        """The statistics of x, (N, C, *S), that the graph of x has theta in."""
        root = (x.numel() // x.shape[1]) ** -0.5  # once before and once after: float16 has room for neither at once
        directions = (
            x.new_full((), root).expand_as(x),
            ((x.detach() - spread(mean, x)) * (2 * root)).to(x.dtype),
        )
        derivatives = tuple(
            [root * found.to(mean.dtype) for found in torch.autograd.grad(x, theta, direction, retain_graph=True)]
            for direction in directions
        )
        constants = (value - along(d, theta) for value, d in zip((mean, var), derivatives))
        return cls(mean, tuple(constants), derivatives)

    def carried(self, theta: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and variance, at least 0, at other values of theta."""
        mean, var = (constant + along(d, theta) for constant, d in zip(self.constants, self.derivatives))
        return mean, (var - (mean - self.mean).square()).clamp(min=0)


def along(derivatives: list[Tensor], theta: list[Tensor]) -> Tensor:
    """Sum of ``derivative * value`` over each channel's parameters, (C,)."""
    products = [d * value.detach() for d, value in zip(derivatives, theta)]
    return torch.stack([product.reshape(len(product), -1).sum(1) for product in products]).sum(0)


def parameters_before(x: Tensor) -> list[Tensor]:
    """Weight and bias, those that train, of the convolution whose output x is; [] if it is that of none.

    Args:
        x (Tensor): With its graph.
    """
    node: Any = x.grad_fn
    if node is None or node.name() != 'ConvolutionBackward0' or node._saved_transposed:
        return []
    found: list[Any] = []
    for function, _ in node.next_functions[1:]:
        while function is not None and function.name() == 'ToCopyBackward0':  # of autocast
            function = function.next_functions[0][0]
        if function is not None:
            found.append(getattr(function, 'variable', None))
    return [] if any(value is None for value in found) else found
