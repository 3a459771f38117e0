"""Statistics over a scope, from the moment plane: IN is the plane itself; LN, GN and BN pool it over some of its axes.

The variance of a scope is the mean of ``v + (m - mean)^2`` over it, and so is the covariance of a group of channels,
with the products of their distances to the mean. Across ranks the mean is weighted by the number of elements, because
in detection two ranks hold different N, H, W.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from .backends import spelled_out
from .ranks import Peers, add, cut, gather


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
    mean: Tensor,
    var: Tensor,
    elements: int | Tensor,
    samples: int | Tensor,
    group: ProcessGroup,
    peers: Peers | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and biased variance over several ranks; one collective, and one more in the backward pass.

    Args:
        mean (Tensor): This rank's, any shape that these ranks share.
        var (Tensor): Biased, the same shape; or the covariances of groups of channels, (G, D, D) for a mean (G, D).
        elements (int or Tensor): Number of elements behind each of them on this rank; 0 if it has none.
        samples (int): Number of samples of this rank.
        group (ProcessGroup): The ranks.
        peers (Peers or None): What this rank knows of the others, if it is to notice when they part ways.

    Returns:
        tuple[Tensor, Tensor, Tensor, Tensor]: Mean and variance (0 if no rank has elements), the number of elements
        behind each mean, in its shape, and the number of samples of these ranks, a scalar.

    Raises:
        RuntimeError: The ranks are not in the same layer and step, or the collective failed.
    """
    with torch.no_grad():
        counts = elements.to(mean) if torch.is_tensor(elements) else torch.full_like(mean, elements)
        place = peers.enter(mean.dtype) if peers else math.nan
        header: Any = place, samples
        header = (mean.new_full((1,), value, dtype=torch.float64) for value in header)
        own = torch.cat([*header, *(plane.reshape(-1) for plane in (mean, var, counts))])
        messages = gather(own, place, group, peers).to(mean.dtype)
        samples = messages[:, 1].sum()
        pooled, pooled_var, total = join_ranks(*cut(messages[:, 2:], [mean, var, counts]))
    exchange = group, peers, peers.calls if peers else 0
    pooled, pooled_var = as_pooled(mean, var, pooled, pooled_var, counts / total.clamp(min=1), exchange)
    return pooled, pooled_var, total, samples


def join_ranks(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance over several ranks, by Chan's formula.

    Args:
        means, variances, counts (Tensor): Of each rank, (ranks, *shape): mean, biased variance or, as in
            :func:`pool_ranks`, covariances, and the number of elements behind each mean.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Mean, variance and the number of elements behind each mean, 0 if no rank has
        elements.
    """
    total = counts.sum(0)
    shares = counts / total.clamp(min=1)
    pooled = (shares * means).sum(0)
    pooled_var = (of_means(shares, variances) * (variances + products(means - pooled, variances))).sum(0)
    return pooled, pooled_var, total


def as_pooled(
    mean: Tensor, var: Tensor, pooled: Tensor, pooled_var: Tensor, share: Tensor, exchange: tuple
) -> tuple[Tensor, Tensor]:
    """Mean and variance of several ranks, known already, as functions of this rank's.

    Args:
        mean, var (Tensor): This rank's, any shape.
        pooled, pooled_var (Tensor): Those of the ranks, the same shape.
        share (Tensor): This rank's share of the elements, the same shape.
        exchange (tuple): The group, its :class:`~mmnorm.core.ranks.Peers` or None, and the number of the call, with
            which the backward pass has its collective.
    """
    return _PoolRanks.apply(mean, var, pooled, pooled_var, share, exchange)


class _Pool(torch.autograd.Function):
    """As one node of the graph: on small feature maps the number of nodes is what a normalizer costs."""

    @staticmethod
    def forward(ctx, mean, var, dims):
        pooled = mean.mean(dims, keepdim=True)
        distance = mean - pooled
        ctx.save_for_backward(mean, distance)
        ctx.dims, ctx.share = dims, pooled.numel() / mean.numel()
        return pooled, torch.addcmul(var, distance, distance).mean(dims, keepdim=True)

    @staticmethod
    def backward(ctx, dmean, dvar):
        mean, distance = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: as a function of the mean
            distance = mean - mean.mean(ctx.dims, keepdim=True)
        dvar = dvar * ctx.share
        return torch.addcmul(dmean * ctx.share, distance, dvar, value=2), dvar.expand_as(distance), None


def products(distance: Tensor, like: Tensor) -> Tensor:
    """What distances between means add to a variance, their squares; to covariances, if ``like`` is such: products.

    Args:
        distance (Tensor): Of a variance's shape, or (..., D).
        like (Tensor): The variance, or covariances (..., D, D).
    """
    if like.dim() == distance.dim():
        return distance.square()
    return distance[..., :, None] * distance[..., None, :]


def of_means(values: Tensor, like: Tensor) -> Tensor:
    """A value for each mean, in a shape that broadcasts to variances, or to covariances."""
    return values if like.dim() == values.dim() else values[..., None]


class _PoolRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mean, var, pooled, pooled_var, share, exchange):
        ctx.save_for_backward(mean, mean - pooled, share)
        ctx.exchange = exchange
        return pooled.clone(), pooled_var.clone()

    @staticmethod
    def backward(ctx, dmean, dvar):
        mean, distance, share = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: as a function of every rank's mean, by one more collective
            distance = mean - _SumOverRanks.apply(share * mean, ctx.exchange)
        # every rank's loss depends on every rank's elements
        own = torch.cat([dmean.flatten(), dvar.flatten()])
        dmean, dvar = cut(_SumOverRanks.apply(own, ctx.exchange), [dmean, dvar])
        dmean, dvar = dmean * share, dvar * of_means(share, dvar)
        if dvar.dim() == distance.dim():
            dmean = torch.addcmul(dmean, distance, dvar, value=2)
        else:
            dmean = dmean + ((dvar + dvar.mT) @ distance[..., None])[..., 0]
        return dmean, dvar, None, None, None, None


class _SumOverRanks(torch.autograd.Function):
    """Its own derivative: each rank's part is in every rank's sum."""

    @staticmethod
    def forward(ctx, own, exchange):
        ctx.exchange = group, peers, call = exchange
        place = peers.place_in(call) if peers else math.nan
        total = torch.cat([own.new_full((1,), place), own.reshape(-1)])
        return add(total, place, group, peers, call).view_as(own)

    @staticmethod
    def backward(ctx, grad):
        return _SumOverRanks.apply(grad, ctx.exchange), None
