"""The layer that every normalizer on the moment plane is: parameters, running statistics, frozen, state dict."""
import warnings

import torch
from torch import distributed, nn

from mmnorm.core import normalize

_BN_KEYS = frozenset(nn.BatchNorm2d(1).state_dict())
_warned = set()


def warn_once(message):
    """Warn a user once per process, on the first rank only."""
    if message not in _warned and (not distributed.is_initialized() or distributed.get_rank() == 0):
        _warned.add(message)
        warnings.warn(message, stacklevel=3)


class PlaneNorm(nn.BatchNorm2d):
    """Base of the normalizers that keep BN statistics.

    A subclass defines ``coefficients(mean, var, count)`` on the moment plane (see :func:`mmnorm.core.normalize`) and
    takes BN's part from :meth:`batch_statistics`. It is an ``nn.BatchNorm2d``, so that whatever looks for BN layers
    (norm_eval, norm_decay_mult, C4 heads, tools that recollect statistics) finds it, and its state dict has BN's names.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): Weight of the new value in the running statistics; None means their plain average.
        frozen (bool): Statistics, affine and control parameters never change, in training too. They are buffers then,
            so no optimizer and no ``requires_grad=True`` from a config reaches them.

    Shape:
        Input and output (N, C, *S) with any number of spatial axes; N may be 0.

    Raises:
        ValueError: The input's channels do not match, or training has one value per channel.
        TypeError: The input is not floating point.
    """

    _abbr_ = 'bn'  # mmcv's attribute prefix: a BN checkpoint fits key by key
    #: What evaluation mode means for this norm while the network trains (stock configs carry norm_eval=True).
    norm_eval_note = ''

    def __init__(self, num_features, eps=1e-5, momentum=0.1, frozen=False):
        super().__init__(num_features, eps, momentum)
        self.frozen = frozen
        self._reset_control_parameters()
        if frozen:
            for name, value in list(self._parameters.items()):
                del self._parameters[name]
                self.register_buffer(name, value.detach())
            self.train()

    def _reset_control_parameters(self):
        """Create what the norm learns beside weight and bias."""

    def coefficients(self, mean, var, count):
        """Map the moment plane to ``scale`` and ``shift``, both (N, C)."""
        raise NotImplementedError

    def forward(self, x):
        self._check_input(x)
        self._note_norm_eval()
        return normalize(x, self.coefficients)

    def batch_statistics(self, mean, var, count):
        """BN's mean and biased variance: of the batch in training, which updates the running ones, else the running.

        An empty batch in training leaves the running statistics alone and returns them.

        Args:
            mean (Tensor): Per sample and channel, (N, C).
            var (Tensor): Biased, (N, C).
            count (int): Number of elements behind each of them.

        Returns:
            tuple[Tensor, Tensor]: Both of shape (C,).
        """
        elements = mean.shape[0] * count
        if not self.training or elements == 0:
            return self.running_mean, self.running_var
        batch_mean = mean.mean(0)
        batch_var = (var + (mean - batch_mean).square()).mean(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            weight = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
            # Bessel-corrected as torch keeps it, so that BN checkpoints and ours are interchangeable
            self.running_mean.lerp_(batch_mean.to(self.running_mean.dtype), weight)
            self.running_var.lerp_((batch_var * (elements / (elements - 1))).to(self.running_var.dtype), weight)
        return batch_mean, batch_var

    def train(self, mode=True):
        return super().train(mode and not self.frozen)

    def _check_input(self, x):
        name = type(self).__name__
        if not x.is_floating_point():
            raise TypeError(f'{name} normalises floating point tensors, got {x.dtype}')
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(f'{name} was built for {self.num_features} channels, got an input of shape '
                             f'{tuple(x.shape)}: axis 1 must have {self.num_features}')
        if self.training and x.numel() == self.num_features:
            raise ValueError(f'Expected more than 1 value per channel when training, got input size {x.size()}')

    def _note_norm_eval(self):
        if self.training or self.frozen or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        if self.weight.requires_grad:
            warn_once(
                f'{type(self).__name__} is in evaluation mode while the network trains, as norm_eval=True does. '
                f'{self.norm_eval_note} To train the norm in full set norm_eval=False (configs/_base_/live_norm.py); '
                'to say that this is meant set frozen=True in its norm_cfg.')

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name, own in {**self._parameters, **self._buffers}.items():
            key = prefix + name
            if key in state_dict:
                if state_dict[key].shape != own.shape and state_dict[key].numel() == own.numel():
                    # the authors' released weights keep (1, C, 1, 1) and (1, C, 1)
                    state_dict[key] = state_dict[key].reshape(own.shape)
            elif name not in _BN_KEYS:
                # BN does not have it: a BN checkpoint leaves it at its default and is not called incomplete
                state_dict[key] = own.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        return f'{self.num_features}, eps={self.eps}, momentum={self.momentum}, frozen={self.frozen}'
