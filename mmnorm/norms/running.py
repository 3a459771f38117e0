"""BN's part of a normalizer: statistics of the batch, of its runs, of all ranks; and the running ones."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mmnorm.core import Peers, Running, moments, neighbors, peers_of, pool, pool_ranks, spelled_out

from .checks import called
from .passes import recomputing


class RunningStatistics(nn.BatchNorm2d):
    """A BatchNorm's state, whose statistics are pooled from a moment plane.

    Running statistics may be those of groups: their shape is :attr:`statistics_shape`. Without them
    (``track_running_stats=False``, or ``running_mean=None``) evaluation normalizes by the batch, as BN does.
    """

    # buffers, or None
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    #: The number of batches tracked when a plain average of them (``momentum=None``) began.
    averaged_from: int = 0
    #: Whether BN's part is over several ranks: all, those of a group, or each run of so many.
    sync: bool = False
    process_group: Any = None
    group_size: int | None = None
    #: Normalize each run of so many samples of a batch by itself (int or None).
    virtual_batch_size: int | None = None

    @property
    def bessel(self) -> bool:
        """Whether running variances are Bessel-corrected, by the elements of a batch, as torch keeps them."""
        return True

    @property
    def used_statistics(self) -> slice:
        """Which of the running statistics the layer uses."""
        return slice(None)

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of the running statistics."""
        return (self.num_features,)

    @property
    def by_batch(self) -> bool:
        """Whether BN's part is taken from the batch: in training, and where there are no running statistics."""
        return self.training or self.running_mean is None

    def batch_statistics(
        self, mean: Tensor, var: Tensor, count: int, dims: int | tuple[int, ...] = 0
    ) -> tuple[Tensor, Tensor]:
        """BN's mean and biased variance: of the batch in training, which updates the running ones, else the running.

        An empty batch (with ``sync``: on all ranks) leaves the running statistics alone and gets them.

        Args:
            mean (Tensor): A plane of means, (N, C) or finer.
            var (Tensor): Biased, the same shape.
            count (int): Number of elements behind each of them.
            dims (int or tuple[int]): Axes to pool, the samples first; as many remain as there are running statistics.

        Returns:
            tuple[Tensor, Tensor]: Both of :attr:`statistics_shape`; with virtual batches (N, *statistics_shape).
        """
        if not self.by_batch:
            return self.held_statistics(mean.dtype)
        size = self.virtual_batch_size
        if size and len(mean) and not self.spans_ranks():
            mean, var = self.run_statistics(mean.split(size), var.split(size), count, dims)
            return mean.reshape(-1, *self.statistics_shape), var.reshape(-1, *self.statistics_shape)
        shape, samples = torch.Size(self.statistics_shape), mean.shape[0]
        elements = count * mean.numel() // shape.numel()
        if elements:
            mean, var = pool(mean, var, dims)
            mean, var = mean.view(shape), var.view(shape)
        elif self.spans_ranks():
            # no elements, but a place in the graph: the other ranks wait for this one in the backward pass as well
            mean, var = (plane[:0].sum() + plane.new_zeros(shape) for plane in (mean, var))
        return self.shared_and_tracked(mean, var, elements, samples)

    def held_statistics(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """The running mean and variance as they are now, in a type; None where there are none.

        Later batches change the buffers in place, so a graph, which may outlive this batch, gets copies.
        """
        copy = torch.is_grad_enabled()
        held = (self.running_mean, self.running_var)
        return tuple(value if value is None else value.to(dtype, copy=copy) for value in held)  # type: ignore

    def run_statistics(
        self, means: tuple[Tensor, ...], variances: tuple[Tensor, ...], count: int, dims: int | tuple[int, ...] = 0
    ) -> list[Tensor]:
        """BN's mean and biased variance of each run of the batch; the running ones take the mean over the runs.

        Args:
            means (tuple[Tensor]): The plane of means, cut along the samples.
            variances (tuple[Tensor]): Biased, cut the same way.
            count (int): Number of elements behind each value.
            dims (int or tuple[int]): Axes to pool, of which the samples are the first.

        Returns:
            list[Tensor]: Mean and variance, each of (N, ...) with 1 in the place of the other pooled axes.
        """
        pooled = [pool(mean, var, dims) for mean, var in zip(means, variances)]
        elements = count * sum(mean.numel() for mean in means) / torch.Size(self.statistics_shape).numel() / len(means)
        if elements:
            mean, var = (torch.stack(planes).mean(0).flatten() for planes in zip(*pooled))
            self.track(mean, var, elements, len(means[0]))
        return [
            torch.cat([plane.expand(len(mean), *plane.shape[1:]) for plane, mean in zip(planes, means)])
            for planes in zip(*pooled)
        ]

    def shared_and_tracked(
        self, mean: Tensor, var: Tensor, elements: int | Tensor, samples: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The statistics of all ranks, if ``sync``, from this rank's; updates the running ones, which empty ones get.

        Args:
            mean (Tensor): Of :attr:`statistics_shape`.
            var (Tensor): Biased, the same shape.
            elements (int or Tensor): Number of elements behind each of them.
            samples (int): Number of samples.

        Returns:
            tuple[Tensor, Tensor]: Mean and biased variance, of the same shape.
        """
        if self.spans_ranks():
            mean, var, elements, samples = self.shared(mean, var, elements, samples)
            if self.running_mean is not None:
                held = self.held_statistics(mean.dtype)
                mean, var = (torch.where(elements > 0, new, old) for new, old in zip((mean, var), held))
        elif not torch.is_tensor(elements) and not elements:
            if self.running_mean is None:
                return mean.new_zeros(self.statistics_shape), var.new_ones(self.statistics_shape)
            return self.held_statistics(mean.dtype)
        self.track(mean, var, elements, samples)
        return mean, var

    def shared(
        self, mean: Tensor, var: Tensor, elements: int | Tensor, samples: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :func:`~mmnorm.core.pool_ranks` makes of this rank's statistics."""
        if not mean.requires_grad and self.weight is not None and self.weight.requires_grad:
            # a rank whose input has no graph, as that of no RoIs may have none, takes part in the backward pass that
            # the other ranks wait for all the same
            mean = mean + 0 * self.weight.sum()
        peers = None if spelled_out() else self.peers()
        return pool_ranks(mean, var, elements, samples, self._ranks(), peers)

    def track(
        self, mean: Tensor, var: Tensor, elements: float | Tensor, samples: int | Tensor, *others: Tensor
    ) -> None:
        """Update the running statistics by a training batch's, once if activation checkpointing computes it twice.

        Args:
            mean (Tensor): Of :attr:`statistics_shape`.
            var (Tensor): Biased, the same shape.
            elements (int or Tensor): Number of elements behind each of them; a tensor may be 0 for none.
            samples (int or Tensor): Number of samples that were normalized together.
            *others (Tensor): For each of the layer's other running statistics, if it has such.
        """
        if self._tracks():
            Running.__call__(self._running(), mean, var, elements, *others)  # which torch.compile can follow
            self.see_batch_size(samples)

    def tracker(self) -> Callable:
        """What does what :meth:`track` does; a :class:`Running` where that is all it does."""
        if not _only_tracks(type(self)):  # type: ignore[arg-type]
            return self.track
        return self._running() if self._tracks() else _track_nothing

    def _tracks(self):
        return self.training and self.track_running_stats and self.running_mean is not None and not recomputing()

    def _running(self):
        buffers = self.running_mean, self.running_var, self.num_batches_tracked
        return Running(*buffers, self.momentum, self.averaged_from, self.bessel)

    def see_batch_size(self, samples: int | Tensor) -> None:
        """Take note of how many samples, of all ranks if ``sync``, were normalized together; only EN does."""

    @torch.no_grad()
    def tracked_moments(self, x: Tensor) -> tuple:
        """What the running statistics estimate, of one batch of this process.

        Args:
            x (Tensor): Floating point, (N, C, *S), with at least one element.

        Returns:
            tuple[Tensor, Tensor, int or Tensor]: Mean and variance in float64, of :attr:`statistics_shape`, before
            Bessel's correction, of which :attr:`bessel` tells; and the number of elements behind each of them.
        """
        mean, var = self._tracked_plane(x)
        shape = torch.Size(self.statistics_shape)
        # the samples, and the channels of each group where statistics are those of groups
        grouped = len(x), shape.numel(), -1
        mean, var = (plane.view(shape) for plane in pool(mean.reshape(grouped), var.reshape(grouped), (0, 2)))
        return mean, var, x.numel() // shape.numel()

    def _tracked_plane(self, x):
        """The plane that :meth:`tracked_moments` pools: mean and variance of each channel, in float64."""
        mean, var = moments(x)
        return mean.double(), var.double()

    def set_ranks(self, process_group: Any = None, group_size: int | None = None) -> None:
        """Set the ranks that BN's part of a Sync norm is over; for arguments see :class:`PlaneNorm`."""
        name = f'{type(self).__name__}({self.num_features})'
        if (process_group is not None or group_size is not None) and not self.sync:
            raise TypeError(
                f'{name} takes the statistics of its own process: process_group and group_size are arguments of the '
                'norms whose names begin with Sync'
            )
        if process_group is not None and group_size is not None:
            raise ValueError(f'{name}: process_group and group_size both say which ranks; give one of them')
        self.process_group, self.group_size = process_group, group_size

    def spans_ranks(self) -> bool:
        """Whether BN's part is that of several processes; in evaluation it is not, as torch's SyncBN has it."""
        if not (self.sync and self.training and self.group_size != 1 and distributed.is_initialized()):
            return False
        return distributed.get_world_size(self._ranks()) > 1

    def peers(self) -> Peers:
        """The ranks that BN's part is over, with what they know of each other."""
        return peers_of(self, self._ranks(), _called_with_width)

    def _ranks(self):
        """The process group that BN's part is taken over."""
        if self.group_size is None:
            return self.process_group or distributed.group.WORLD
        try:
            return neighbors(self.group_size)
        except ValueError as error:
            raise ValueError(f'{type(self).__name__}({self.num_features}): {error}') from None

    def __deepcopy__(self, memo):
        # copies, such as averaged models, share the group, which torch cannot copy
        memo[id(self.process_group)] = self.process_group
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied


@cache
def _only_tracks(kind: type) -> bool:
    """Whether what layers of a class do with a batch's statistics is to move the running ones on."""
    return all(getattr(kind, name) is getattr(RunningStatistics, name) for name in ('track', 'see_batch_size'))


def _called_with_width(layer):
    return f'{called(layer)} ({layer.num_features} channels)'


def _track_nothing(mean, var, elements, samples):
    """Of a layer without running statistics, or in a pass that is computed a second time."""
