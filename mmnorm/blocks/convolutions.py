"""Convolutions whose weights are computed, as conv_cfg: those that norms, or papers' comparisons, go with."""

import torch
from torch import Tensor, nn


class ConvMABN(nn.Conv2d):
    """A convolution whose weight has a mean of 0 in each filter: of MABN (Yan et al., ICLR 2020, arXiv 2001.06838).

    ``y = conv(x, weight - mean over (C_in, kH, kW) of weight) + bias``. The state dict is that of ``nn.Conv2d``.

    Args:
        As of ``nn.Conv2d``.

    Shape:
        As of ``nn.Conv2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class ConvWN(nn.Conv2d):
    """A convolution with weight normalization (Salimans and Kingma, NeurIPS 2016, https://arxiv.org/abs/1602.07868).

    ``y = conv(x, w) + bias, w = g v / ||v||`` (Equation 2) with the norm of each filter; g and v are learned. v is the
    parameter ``weight``, so that what initializes a convolution, and the checkpoint of a plain one, set it. g, which is
    ``weight_g``, is NaN until the first forward pass of a training, and w is v until then; that pass sets it to
    ``||v||``, and later it is learned alone: what writes to ``weight`` then changes directions only.

    Checkpoints of torch's weight_norm, both forms, load too. Torch's parametrization itself is not used: with it an
    initializer writes to a tensor that is thrown away, and the layer cannot be pickled.

    Args:
        As of ``nn.Conv2d``.

    Shape:
        As of ``nn.Conv2d``.

    Raises:
        ValueError: A filter is 0 where a training begins: it has no direction.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.weight_g = nn.Parameter(self.weight.new_full((self.out_channels,), torch.nan))
        self._started = False  # saves looking at weight_g, which would wait for the device

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, 'weight_g'):  # torch's constructor comes here before
            self.weight_g.detach().fill_(torch.nan)
            self._started = False

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3))
        if self.training and torch.is_grad_enabled() and not self._started:
            self._start(norm.detach())
        g = torch.where(self.weight_g.isnan(), norm, self.weight_g)
        ratio = g / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return self._conv_forward(x, self.weight * ratio.view(-1, 1, 1, 1), self.bias)

    @torch.no_grad()
    def _start(self, norm):
        if not norm.all():
            raise ValueError(
                f'ConvWN({self.in_channels}, {self.out_channels}): filters of zeros have no direction, so that weight '
                'normalization cannot train them; initialize them by another rule, or use a plain convolution there'
            )
        self.weight_g.copy_(torch.where(self.weight_g.isnan(), norm, self.weight_g))
        self._started = True

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for g, v in (
            ('weight_g', 'weight_v'),
            ('parametrizations.weight.original0', 'parametrizations.weight.original1'),
        ):
            if f'{prefix}{g}' in state_dict and f'{prefix}{v}' in state_dict:  # torch's, (C, 1, 1, 1)
                state_dict[f'{prefix}weight_g'] = state_dict.pop(f'{prefix}{g}').flatten()
                state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}{v}')
        if f'{prefix}weight' in state_dict:
            state_dict.setdefault(f'{prefix}weight_g', torch.full_like(self.weight_g, torch.nan))
        self._started = False
        super()._load_from_state_dict(state_dict, prefix, *args)


CONVOLUTIONS = ConvMABN, ConvWN
