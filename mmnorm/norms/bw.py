"""Batch Whitening by Newton's iterations, IterNorm: Huang et al., CVPR 2019, https://arxiv.org/abs/1904.03441.

xbn's Table A2 has it with a running covariance: Huang et al., CVPR 2020, https://arxiv.org/abs/2003.12327.
"""

from math import prod

from mmnorm.core import like, statistics_dtype, whiten

from .arguments import checked, one_of
from .checks import warn_once
from .passes import beside_saving_hooks
from .roots import inverse_root
from .whitening import Whitening


class BW(Whitening):
    """Batch Whitening, IterNorm (Algorithms 1 and 2): decorrelates the channels of a group over the batch.

    Groups of channels are centered by their means over the batch and all positions, and multiplied by the inverse
    square root of their covariance there, which Newton's iterations find; then affine per channel. Evaluation takes
    the running mean and the running whitening matrix: the average of those that the batches had, as in the paper. With
    one channel in a group it is BN.

    A BN checkpoint loads: evaluation computes what BN did until the running matrix moves on.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, frozen, num_groups,
        channels_per_group, iterations: See :class:`~mmnorm.norms.whitening.Whitening`. The groups are of 64 channels,
            or of the largest divisor of C below. Good matrices want many more values than channels in a group:
            positions times images.
        tracked (str): What runs beside the mean: 'matrix' (default), the whitening matrix, in ``running_wm``; or
            'covariance', the biased covariance, in ``running_cov``, of which evaluation computes the matrix.

    Raises:
        ValueError: The groups do not divide the channels, or ``tracked`` is unknown.
    """

    control_buffers = dict(running_wm=0.0, running_cov=0.0)
    usual_size = 64
    norm_eval_note = (
        'Gamma and beta train; the whitening uses a running mean and matrices that stay as they were loaded.'
    )

    @checked(tracked=one_of('matrix', 'covariance'))
    def __init__(self, num_features: int, *args, tracked: str = 'matrix', **kwargs) -> None:
        self.tracked = tracked
        super().__init__(num_features, *args, **kwargs)

    def control_shape(self, name):
        other = dict(matrix='running_cov', covariance='running_wm')[self.tracked]
        return None if name == other else super().control_shape(name)

    def marks(self):
        kept = self.running_mean is not None  # the shape of its matrix shows the groups
        by_newton = not kept or self.tracked == 'covariance'
        return dict(
            batch_whitened_groups=0 if kept else self.num_groups, batch_newton_iterations=self.iterations * by_newton
        )

    def from_bn(self, tensors):
        found = self.uncorrelated(tensors)
        if found:
            nearly = '' if self.tracked == 'matrix' else ", as nearly as Newton's iterations come to it"
            warn_once(
                f'{type(self).__name__}: a BN checkpoint is loaded; the channels of a group are taken to be '
                'uncorrelated, as BN takes them, until training finds how they are. Until then evaluation computes '
                f'what it computed with BN{nearly}.'
            )
        return tensors | found

    def normalize(self, x):
        samples, channels, *positions = x.shape
        groups, size = self.grouped
        elements = samples * prod(positions)

        def of_batch(mean, covariance):
            mean, covariance, count, all_samples = self.over_ranks(mean, covariance, elements, samples)
            root = inverse_root(covariance, self.eps, self.iterations)
            matrix = root if self.tracked == 'matrix' else covariance
            self.track_moments(mean, covariance, count, all_samples, matrix)
            return mean, root

        def of_running(*_):
            mean, matrix = self.held_moments(statistics_dtype(x))
            if self.tracked == 'covariance':
                matrix = inverse_root(matrix, self.eps, self.iterations)
            return mean, matrix

        by_channel = x.transpose(0, 1)
        y = whiten(
            by_channel.reshape(1, channels, elements),
            (groups, size, elements),
            beside_saving_hooks(of_batch if self.by_batch else of_running),
            self.weight,
            self.bias,
            takes_moments=self.by_batch,
        )
        return like(like(y, by_channel).transpose(0, 1), x)

    def matrix_of(self, covariance, exact=False):
        if self.tracked == 'covariance':
            return covariance
        return inverse_root(covariance, self.eps, None if exact else self.iterations)


class SyncBW(BW):
    """:class:`BW` with the batch's means and covariances over all ranks. For arguments see there."""

    sync = True
