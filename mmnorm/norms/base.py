"""The layer that every normalizer on the moment plane is: parameters, running statistics, frozen, sync, state dict."""
import warnings

import torch
from torch import distributed, nn
from torch.nn import functional as F

from mmnorm.core import moments, normalize, pool, pool_ranks

_BN_KEYS = frozenset(nn.BatchNorm2d(1).state_dict())
_warned = set()


def warn_once(message):
    """Warn a user once per process, on the first rank only."""
    if message not in _warned and (not distributed.is_initialized() or distributed.get_rank() == 0):
        _warned.add(message)
        warnings.warn(message, stacklevel=3)


def check_input(layer, x, channels):
    """Raise a TypeError or ValueError naming the layer if ``x`` is not floating point of shape (N, channels, *S)."""
    name = type(layer).__name__
    if not x.is_floating_point():
        raise TypeError(f'{name} normalises floating point tensors, got {x.dtype}')
    if x.dim() < 2 or x.shape[1] != channels:
        raise ValueError(f'{name} was built for {channels} channels, got an input of shape {tuple(x.shape)}: '
                         f'axis 1 must have {channels}')


def check_groups(layer, groups, channels, argument='num_groups'):
    """Raise a ValueError that names what would do if ``groups`` do not divide ``channels``."""
    if groups < 1 or channels % groups:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(f'{type(layer).__name__}: {argument}={groups} does not divide {channels} channels; '
                         f'these would do: {", ".join(map(str, divisors))}')


def freeze(layer):
    """Make buffers of a layer's parameters: no optimizer and no ``requires_grad=True`` from a config reaches them."""
    for name, value in list(layer._parameters.items()):
        del layer._parameters[name]
        layer.register_buffer(name, value.detach())


class PlaneNorm(nn.BatchNorm2d):
    """Base of the normalizers that keep BN statistics.

    A subclass defines ``statistics(mean, var, count)`` on the moment plane (see :func:`mmnorm.core.normalize`) and
    takes BN's part from :meth:`batch_statistics`. It is an ``nn.BatchNorm2d``, so that whatever looks for BN layers
    (norm_eval, norm_decay_mult, C4 heads, tools that recollect statistics) finds it, and its state dict has BN's names.
    A subclass with ``sync = True`` takes BN's part over all ranks.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): Weight of the new value in the running statistics; None means their plain average.
        frozen (bool): Statistics, affine and control parameters never change, in training too.

    Shape:
        Input and output (N, C, *S) with any number of spatial axes; N may be 0.

    Raises:
        ValueError: The input's channels do not match, or training has one value per channel.
        TypeError: The input is not floating point.
    """

    _abbr_ = 'bn'  # mmcv's attribute prefix: a BN checkpoint fits key by key
    sync = False
    #: Which of the running statistics the layer uses.
    used_statistics = slice(None)
    #: What evaluation mode means for this norm while the network trains (stock configs carry norm_eval=True).
    norm_eval_note = 'Gamma and beta train; the normalization uses running statistics that stay as they were loaded.'

    def __init__(self, num_features, eps=1e-5, momentum=0.1, frozen=False):
        super().__init__(num_features, eps, momentum)
        self.frozen = frozen
        self._reset_control_parameters()
        if frozen:
            freeze(self)
            self.train()

    def _reset_control_parameters(self):
        """Create what the norm learns beside weight and bias."""

    def statistics(self, mean, var, count):
        """Map the moment plane to the mean, variance, weight and bias to normalise with, broadcast to (N, C)."""
        raise NotImplementedError

    def forward(self, x):
        self._check_input(x)
        self._note_norm_eval()
        return normalize(x, self.statistics, self.eps)

    def batch_statistics(self, mean, var, count, dims=0):
        """BN's mean and biased variance: of the batch in training, which updates the running ones, else the running.

        An empty batch (with ``sync``: on all ranks) leaves the running statistics alone and gets them.

        Args:
            mean (Tensor): A plane of means, (N, C) or finer.
            var (Tensor): Biased, the same shape.
            count (int): Number of elements behind each of them.
            dims (int or tuple[int]): Axes to pool; what remains has as many elements as the running statistics.

        Returns:
            tuple[Tensor, Tensor]: Both of the running statistics' shape.
        """
        if not self.training:
            return self.running_mean, self.running_var
        shape, samples = self.running_mean.shape, mean.shape[0]
        elements = count * mean.numel() // shape.numel()
        if elements:
            mean, var = pool(mean, var, dims)
            mean, var = mean.view(shape), var.view(shape)
        elif self._ranks():
            # no elements, but a place in the graph: the other ranks wait for this one in the backward pass as well
            mean, var = (plane[:0].sum() + plane.new_zeros(shape) for plane in (mean, var))
        return self.shared_and_tracked(mean, var, elements, samples)

    def run_statistics(self, means, variances, count, dims=0):
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
        elements = count * sum(mean.numel() for mean in means) / self.running_mean.numel() / len(means)
        if elements:
            self.track(*(sum(planes).flatten() / len(planes) for planes in zip(*pooled)), elements)
        return [torch.cat([plane.expand(len(mean), *plane.shape[1:]) for plane, mean in zip(planes, means)])
                for planes in zip(*pooled)]

    def shared_and_tracked(self, mean, var, elements, samples):
        """The statistics of all ranks, if ``sync``, from this rank's; updates the running ones, which empty ones get.

        Args:
            mean (Tensor): Shape of the running statistics.
            var (Tensor): Biased, the same shape.
            elements (int or Tensor): Number of elements behind each of them.
            samples (int): Number of samples.

        Returns:
            tuple[Tensor, Tensor]: Mean and biased variance, of the same shape.
        """
        if self._ranks():
            if self.weight.requires_grad:
                # also a rank whose input has no graph, as that of no RoIs may have none, takes part in the backward
                # pass that the other ranks wait for
                mean = mean + 0 * self.weight.sum()
            mean, var, elements, samples = pool_ranks(mean, var, elements, samples)
            mean, var = (torch.where(elements > 0, new, running.to(new))
                         for new, running in ((mean, self.running_mean), (var, self.running_var)))
        elif not torch.is_tensor(elements) and not elements:
            return self.running_mean, self.running_var
        self.track(mean, var, elements)
        self.see_batch_size(samples)
        return mean, var

    def see_batch_size(self, samples):
        """Take note of how many samples, of all ranks if ``sync``, a training batch had; only EN does."""

    @torch.no_grad()
    def track(self, mean, var, elements):
        """Update the running statistics by a batch's.

        Args:
            mean (Tensor): Shape of the running statistics.
            var (Tensor): Biased, the same shape.
            elements (int or Tensor): Number of elements behind each of them; a tensor may be 0 for none.
        """
        if torch.is_tensor(elements):
            held = (elements > 0).any()
            bessel = elements / (elements - 1).clamp(min=1)
        else:
            held, bessel = 1, elements / (elements - 1)
        self.num_batches_tracked.add_(held)
        if self.momentum is None:
            weight = held / self.num_batches_tracked.clamp(min=1).to(self.running_mean)
        else:
            weight = self.momentum * held
        # Bessel-corrected as torch keeps it, so that BN checkpoints and ours are interchangeable
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_((var * bessel).to(self.running_var), weight)

    @torch.no_grad()
    def tracked_moments(self, x):
        """What the running statistics estimate, of one batch of this process.

        Args:
            x (Tensor): Floating point, (N, C, *S), with at least one element.

        Returns:
            tuple[Tensor, Tensor, int or Tensor]: Mean and biased variance in float64, of the running statistics' shape,
            and the number of elements behind each of them.
        """
        mean, var = self._tracked_plane(x)
        shape = self.running_mean.shape
        # the samples, and the channels of each group where statistics are those of groups
        grouped = len(x), shape.numel(), -1
        mean, var = (plane.view(shape) for plane in pool(mean.reshape(grouped), var.reshape(grouped), (0, 2)))
        return mean, var, x.numel() // shape.numel()

    def _tracked_plane(self, x):
        """The plane that :meth:`tracked_moments` pools: mean and biased variance of each channel, in float64."""
        mean, var = moments(x)
        return mean.double(), var.double()

    def running_affine(self, x):
        """Evaluate as BN: normalise by the running statistics, a constant affine per channel."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def train(self, mode=True):
        return super().train(mode and not self.frozen)

    def reset_running_stats(self):
        """As torch's, for tools that recollect statistics; a frozen layer keeps its own."""
        if not getattr(self, 'frozen', False):
            super().reset_running_stats()

    def _ranks(self):
        return self.sync and distributed.is_initialized() and distributed.get_world_size() > 1

    def _check_input_dim(self, x):
        """torch's check, of four dimensions; ours is :meth:`_check_input`."""

    def _check_input(self, x):
        check_input(self, x, self.num_features)
        if self.training and self._one_value_each(x) and not self._ranks():
            raise ValueError(f'Expected more than 1 value per channel when training, got input size {x.size()}')

    def _one_value_each(self, x):
        """Whether each of the layer's statistics would have one value, so that no variance exists."""
        return x.numel() == self.num_features

    def _note_norm_eval(self):
        if self.training or self.frozen or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        if self.running_mean is None:
            return  # evaluation mode changes nothing
        if self.weight.requires_grad:
            warn_once(
                f'{type(self).__name__} is in evaluation mode while the network trains, as norm_eval=True does. '
                f'{self.norm_eval_note} To train the norm in full set norm_eval=False (configs/_base_/live_norm.py); '
                'to say that this is meant set frozen=True in its norm_cfg.')

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name, own in {**self._parameters, **self._buffers}.items():
            key = prefix + name
            if own is None:
                state_dict.pop(key, None)
            elif key in state_dict:
                if state_dict[key].shape != own.shape and state_dict[key].numel() == own.numel():
                    # the authors' released weights keep (1, C, 1, 1) and (1, C, 1)
                    state_dict[key] = state_dict[key].reshape(own.shape)
            elif name not in _BN_KEYS:
                # BN does not have it: a BN checkpoint leaves it at its default and is not called incomplete
                state_dict[key] = own.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        return f'{self.num_features}, eps={self.eps}, momentum={self.momentum}, frozen={self.frozen}'
