"""Group Whitening (the strongest batch-free norm in paper xbn's Table A2)."""
from math import prod

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mmnorm.core import like

from .base import check_groups, check_input, freeze


class GW(nn.GroupNorm):
    """Group Whitening: decorrelates the groups of channels of each sample, with G x G whitening matrices.

    A sample is seen as (G, M) with M = (C / G) * L, centred, and multiplied by the inverse square root of its
    covariance; then affine per channel. It keeps no running statistics; training and evaluation are the same.

    Args:
        num_features (int): Number of channels C.
        num_groups (int): G, at most C. Default 64, as in xbn.
        eps (float): Added to the diagonal of the covariance. Default 1e-5.
        method (str): 'iterative' (Newton's iterations) or 'zca' (eigendecomposition, exact; not exportable to ONNX).
        iterations (int): T of 'iterative'. Default 5.
        frozen (bool): Gamma and beta never change; they are buffers then.

    Shape:
        Input and output (N, C, *S) with M of at least 2; N may be 0.

    Raises:
        ValueError: ``num_groups`` does not divide the channels, unknown method, or M is 1 (in forward).
    """

    def __init__(self, num_features, num_groups=64, eps=1e-5, method='iterative', iterations=5, frozen=False):
        if method not in ('iterative', 'zca'):
            raise ValueError(f"GW: method={method!r} is unknown; 'iterative' or 'zca' would do")
        num_groups = min(num_groups, num_features)
        check_groups(self, num_groups, num_features)
        super().__init__(num_groups, num_features, eps)
        self.method, self.iterations = method, iterations
        if frozen:
            freeze(self)

    def forward(self, x):
        check_input(self, x, self.num_channels)
        positions = prod(x.shape[2:])
        values = self.num_channels // self.num_groups * positions
        if values == 1:
            raise ValueError(f'GW with num_groups={self.num_groups} has one value per group in an input of shape '
                             f'{tuple(x.shape)}; at most {self.num_channels // 2} groups would do there')
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(x.shape[0], self.num_groups, values)
            centered = wide - wide.mean(2, keepdim=True)
            identity = torch.eye(self.num_groups, dtype=centered.dtype, device=x.device)
            covariance = centered @ centered.transpose(1, 2) / max(values, 1) + self.eps * identity
            if self.method == 'zca':
                whitening = _InverseSquareRoot.apply(covariance, self.eps)
            else:
                trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
                whitening = identity
                for _ in range(self.iterations):
                    whitening = 1.5 * whitening - 0.5 * whitening @ whitening @ whitening @ (covariance / trace)
                whitening = whitening * torch.rsqrt(trace)
            y = (whitening @ centered).reshape(*x.shape[:2], positions)
            y = y * self.weight[:, None] + self.bias[:, None]
        return like(y.to(x.dtype), x)

    def extra_repr(self):
        return f'{self.num_channels}, num_groups={self.num_groups}, eps={self.eps}, method={self.method}'


class _InverseSquareRoot(torch.autograd.Function):
    """Of symmetric positive matrices (N, G, G). Its gradient is finite where eigenvalues coincide; eigh's is not."""

    @staticmethod
    def forward(ctx, matrices, eps):
        values, vectors = torch.linalg.eigh(matrices)
        # none is smaller than eps, but for rounding, which is relative to the largest
        roots = torch.maximum(values, (values[:, -1:] * torch.finfo(values.dtype).eps).clamp(min=eps)).sqrt()
        ctx.save_for_backward(roots, vectors)
        return vectors / roots[:, None] @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        roots, vectors = ctx.saved_tensors
        # divided differences of l -> 1 / sqrt(l)
        a, b = roots[:, :, None], roots[:, None]
        inner = vectors.mT @ (grad + grad.mT) @ vectors / (-2 * a * b * (a + b))
        return vectors @ inner @ vectors.mT, None
