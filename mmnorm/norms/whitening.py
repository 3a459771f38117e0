"""The layers that whiten: groups of channels, and running statistics of the pairs of channels in each."""

from typing import Any

import torch
from torch import Tensor

from mmnorm.core import row_moments

from .arguments import NONE, checked, integer
from .base import PlaneNorm
from .groups import NUM_GROUPS, cut_channels


class Whitening(PlaneNorm):
    """Base of the normalizers that whiten groups of channels by running statistics.

    Beside BN's running mean and variance a layer keeps one matrix for each group, (G, D, D), in a buffer that
    ``control_buffers`` names: ``running_wm``, a whitening matrix, or ``running_cov``, a biased covariance. The running
    variance is kept as BN's, for those who look at it; evaluation does not use it.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen: See
            :class:`~mmnorm.norms.base.PlaneNorm`; eps is added to the diagonal of a covariance.
        num_groups (int or str): G, how many groups to cut the channels into, at most C. Default 'auto': as many as
            make the groups as large as they can be, up to the paper's size.
        channels_per_group (int): D, the size of a matrix, instead of ``num_groups``.
        iterations (int): T, of Newton's method (:func:`~mmnorm.norms.roots.inverse_root`). Default 5.

    Raises:
        ValueError: The groups do not divide the channels.
    """

    #: The paper's size of a group.
    usual_size: int

    @checked(num_groups=NUM_GROUPS, channels_per_group=integer(1) | NONE, iterations=integer(1))
    def __init__(
        self,
        num_features: int,
        *args,
        num_groups: int | str = 'auto',
        channels_per_group: int | None = None,
        iterations: int = 5,
        **kwargs,
    ) -> None:
        name = type(self).__name__
        if num_groups == 'auto' and channels_per_group is None:
            channels_per_group = cut_channels(name, num_features, most=self.usual_size)
        self.num_groups = cut_channels(name, num_features, num_groups, channels_per_group)
        self.iterations = iterations
        super().__init__(num_features, *args, **kwargs)

    @property
    def grouped(self) -> tuple[int, int]:
        """The number of groups and the number of channels in each."""
        return self.num_groups, self.num_features // self.num_groups

    @property
    def running_matrix(self) -> Any:
        """The running whitening matrix or covariance of each group, (G, D, D), or None."""
        held = (getattr(self, name, None) for name in self.control_buffers)
        return next((matrix for matrix in held if matrix is not None), None)

    @property
    def sees_padding(self):
        return self.running_mean is None

    def control_shape(self, name):
        if name not in self.control_buffers:
            return super().control_shape(name)
        return None if self.running_mean is None else (*self.grouped, self.grouped[1])

    def put_controls(self, device=None, dtype=None):
        super().put_controls(device, dtype)
        self._reset_matrix()

    def reset_controls(self):
        super().reset_controls()
        self._reset_matrix()

    def reset_running_stats(self):
        super().reset_running_stats()
        if not getattr(self, 'frozen', False):
            self._reset_matrix()

    @torch.no_grad()
    def _reset_matrix(self):
        matrix = self.running_matrix
        if matrix is not None:  # torch's constructor comes here before there is one
            matrix.copy_(torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device))

    def held_moments(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The running mean, (G, D), and the running matrix, (G, D, D), as they are now, in a type."""
        copy = torch.is_grad_enabled()  # later batches change the buffers in place
        return self.running_mean.view(self.grouped).to(dtype, copy=copy), self.running_matrix.to(dtype, copy=copy)

    def over_ranks(
        self, mean: Tensor, covariance: Tensor, elements: int, samples: int
    ) -> tuple[Tensor, Tensor, Any, Any]:
        """Mean, (G, D), and biased covariance, (G, D, D), of a batch, of all ranks if ``sync``; and the numbers.

        Args:
            mean, covariance (Tensor): Of this rank's share.
            elements (int): Number of elements behind each mean.
            samples (int): Number of samples.
        """
        if not self.spans_ranks():
            return mean, covariance, elements, samples
        mean, covariance, counts, total = self.shared(mean, covariance, elements, samples)
        return mean, covariance, counts.flatten(), total

    def track_moments(self, mean: Tensor, covariance: Tensor, elements: Any, samples: Any, matrix: Tensor) -> None:
        """Update the running statistics by what :meth:`over_ranks` gave, and by the running matrix of that batch."""
        if self._tracks() and (torch.is_tensor(elements) or elements):
            mean, variances = mean.detach().flatten(), _diagonal(covariance.detach())
            self.track(mean, variances, elements, samples, matrix.detach())

    def matrix_of(self, covariance: Tensor, exact: bool = False) -> Tensor:
        """What the running matrix of a covariance is, (G, D, D); ``exact``: not by Newton's iterations."""
        return covariance

    def _running(self):
        return super()._running()._replace(others=(self.running_matrix,))

    def tracked_moments(self, x):
        rows = x.double().transpose(0, 1).reshape(*self.grouped, -1)
        mean, covariance = row_moments(rows)
        return mean.flatten(), covariance, rows.shape[2]

    @torch.no_grad()
    def set_covariance(self, covariance: Tensor) -> None:
        """Set the running matrix to that of a covariance, (G, D, D)."""
        self.running_matrix.copy_(self.matrix_of(covariance))

    def uncorrelated(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The running matrix that a BN's tensors stand for, where they have none: that of uncorrelated channels."""
        var = tensors.get('running_var')
        missing = [name for name in self.control_buffers if name in self._buffers and name not in tensors]
        if var is None or var.numel() != self.num_features:
            return {}
        covariance = var.to(torch.promote_types(var.dtype, torch.float32)).reshape(self.grouped).diag_embed()
        return {name: self.matrix_of(covariance, exact=True) for name in missing}

    def extra_repr(self):
        return f'{super().extra_repr()}, num_groups={self.num_groups}, iterations={self.iterations}'


def _diagonal(covariance):
    """The variances, (C,), of covariances (G, D, D)."""
    return covariance.diagonal(dim1=-2, dim2=-1).reshape(-1)
