"""Filter Response Normalization: Singh and Krishnan, CVPR 2020, https://arxiv.org/abs/1911.09737 (of rbn, Table 1)."""

from math import prod

import torch
from torch import Tensor, nn

from mmnorm.core import normalize, spread

from .arguments import FLAG, checked, integer, number
from .batch_free import BatchFreeNorm
from .checks import called, check_input, warn_once
from .passes import beside_saving_hooks


class FRN(BatchFreeNorm):
    """Filter Response Normalization: each channel of a sample is divided by its quadratic mean; nothing is centered.

    ``y = weight * x / sqrt(nu2 + eps) + bias`` with nu2, the mean of x^2 over the positions; with ``tlu`` then
    ``max(y, tau)``, which takes the place of the ReLU behind it. On the plane nu2 is v + m^2.

    Args:
        num_features, affine, device, dtype, bias, frozen: See :class:`~mmnorm.norms.batch_free.BatchFreeNorm`.
        eps (float): Added to nu2, above 0. Default 1e-6.
        learnable_eps (bool): Add ``abs(eps_l)`` too, one learned number that starts at 1e-4, as the paper has it for
            maps of few positions: at one position y is otherwise about ``weight * sign(x) + bias``. Default False.
        tlu (bool): Whether a thresholded linear unit (:class:`TLU`) is a part of the layer. Default False, for blocks
            of hosts, whose ReLUs follow.

    Shape:
        Input and output (N, C, *S); N may be 0.
    """

    control_parameters = dict(eps_l=1e-4, tau=0.0)
    own_eps = 1e-6
    eps_l: Tensor
    tau: Tensor

    @checked(eps=number(least=0), learnable_eps=FLAG, tlu=FLAG)
    def __init__(
        self,
        num_features: int,
        eps: float = own_eps,
        *args,
        learnable_eps: bool = False,
        tlu: bool = False,
        **kwargs,
    ) -> None:
        self.learnable_eps, self.tlu = learnable_eps, tlu
        super().__init__(num_features, eps, *args, **kwargs)

    def marks(self):
        return dict(filter_response=1)

    def control_shape(self, name):
        if name == 'eps_l':
            return (1,) if self.learnable_eps else None
        return (self.num_channels,) if self.tlu else None

    def normalize(self, x):
        if prod(x.shape[2:]) == 1 and not self.learnable_eps:
            warn_once(
                f'{called(self)} normalizes an input with one value per channel of a sample, as after a global pool: '
                'all that is left of it is its sign. Use learnable_eps=True there.'
            )
        y = normalize(x, beside_saving_hooks(self._statistics), self.eps, self.learned())
        return threshold(y, self.tau) if self.tlu else y

    def _statistics(self, mean, var, count):
        square = torch.addcmul(var, mean, mean)
        if self.learnable_eps:
            square = square + self.eps_l.abs()
        return torch.zeros_like(mean), square, *self.gamma_beta

    def extra_repr(self):
        return f'{self.num_channels}, eps={self.eps}, learnable_eps={self.learnable_eps}, tlu={self.tlu}'


class TLU(nn.Module):
    """Thresholded linear unit: ``max(x, tau)``, with tau per channel; a ReLU where tau is 0, as it starts.

    Args:
        num_features (int): Number of channels C.
        device, dtype: Of tau.

    Shape:
        Input and output (N, C, *S).
    """

    def __init__(self, num_features: int, device=None, dtype=None) -> None:
        super().__init__()
        self.num_features = integer(1).check('TLU', 'num_features', num_features)
        self.tau = nn.Parameter(torch.zeros(self.num_features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_features)
        return threshold(x, self.tau)

    def extra_repr(self) -> str:
        return str(self.num_features)


def threshold(x: Tensor, tau: Tensor) -> Tensor:
    """``max(x, tau)`` of x (N, C, *S) and tau (C,), in the type of x."""
    return torch.maximum(x, spread(tau, x).to(x.dtype))
