"""Statistics over a scope, from the moment plane: IN is the plane itself; LN, GN and BN pool it over some of its axes.

The variance of a scope is the mean of ``v + (m - mean)^2`` over it. Across ranks the mean is weighted by the number of
elements, because in detection two ranks hold different N, H, W.
"""

import torch
from torch import Tensor, distributed

from .plane import first_derivative_only, spelled_out


def pool(mean: Tensor, var: Tensor, dims: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over some axes of a plane.

    Args:
        mean (Tensor): Means of equally large parts, any shape.
        var (Tensor): Their biased variances, the same shape.
        dims (int or tuple[int]): Axes to pool.

    Returns:
        tuple[Tensor, Tensor]: Both with 1 in the place of each pooled axis.
    """
    if spelled_out() or mean.numel() == 0:
        pooled = mean.mean(dims, keepdim=True)
        return pooled, (var + (mean - pooled).square()).mean(dims, keepdim=True)
    return _Pool.apply(mean, var, dims)


def pool_ranks(
    mean: Tensor, var: Tensor, elements: int | Tensor, samples: int | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and biased variance over all ranks; one collective, and one more in the backward pass.

    Args:
        mean (Tensor): This rank's, any shape that all ranks share.
        var (Tensor): Biased, the same shape.
        elements (int or Tensor): Number of elements behind each of them on this rank; 0 if it has none.
        samples (int): Number of samples of this rank.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: Mean and variance (0 if no rank has elements), the number of elements
        behind each of them, in the same shape, and the number of samples of all ranks, a scalar.
    """
    return _PoolRanks.apply(mean, var, elements, samples)


class _Pool(torch.autograd.Function):
    """As one node of the graph: on small feature maps the number of nodes is what a normalizer costs."""

    @staticmethod
    def forward(ctx, mean, var, dims):
        pooled = mean.mean(dims, keepdim=True)
        distance = mean - pooled
        ctx.save_for_backward(distance)
        ctx.share = pooled.numel() / mean.numel()
        return pooled, torch.addcmul(var, distance, distance).mean(dims, keepdim=True)

    @staticmethod
    @first_derivative_only
    def backward(ctx, dmean, dvar):
        (distance,) = ctx.saved_tensors
        dvar = dvar * ctx.share
        return torch.addcmul(dmean * ctx.share, distance, dvar, value=2), dvar.expand_as(distance), None


class _PoolRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mean, var, elements, samples):
        counts = elements.to(mean) if torch.is_tensor(elements) else torch.full_like(mean, elements)
        own = torch.stack([mean, var, counts, torch.full_like(mean, samples)])
        world = distributed.get_world_size()
        ranks = own.new_empty(world * 4, *mean.shape)
        distributed.all_gather_into_tensor(ranks, own)
        means, variances, counts, samples = ranks.view(world, 4, *mean.shape).unbind(1)
        total, samples = counts.sum(0), samples.sum(0).flatten()[0]
        shares = counts / total.clamp(min=1)
        pooled = (shares * means).sum(0)
        pooled_var = (shares * (variances + (means - pooled).square())).sum(0)
        ctx.save_for_backward(mean - pooled, shares[distributed.get_rank()])
        ctx.mark_non_differentiable(total, samples)
        return pooled, pooled_var, total, samples

    @staticmethod
    @first_derivative_only
    def backward(ctx, dmean, dvar, *_):
        distance, share = ctx.saved_tensors
        # every rank's loss depends on every rank's elements
        gradients = torch.stack([dmean, dvar])
        distributed.all_reduce(gradients)
        dmean, dvar = gradients * share
        return torch.addcmul(dmean, distance, dvar, value=2), dvar, None, None
