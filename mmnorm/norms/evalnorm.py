"""EvalNorm (paper evalnorm)."""
import contextlib
from math import prod

import torch
from torch import distributed, nn

from mmnorm.core import moments, normalize

from .base import PlaneNorm, warn_once
from .modes import evaluating, run

_MODES = ('rule', 'simple', 'online', 'offline')
# What an estimation step looks at: whole samples up to so many elements (one at least), and in them so many positions.
_SAMPLE_ELEMENTS = 2**18
_POSITIONS = 32
# AdaGrad's learning rate for alpha and beta, which live in [0, 1]
_STEP = 0.05


class EN(PlaneNorm):
    """EvalNorm (evalnorm, Eq. 5 and 6): BN in training, statistics corrected for the batch's own share in evaluation.

    - Training: exactly torch's BN, to the bit.
    - Held (evaluation mode with gradients enabled, as norm_eval=True gives in training): exactly BN by its running
      statistics.
    - Evaluation (evaluation mode without gradients): each sample, of moments m and v, is normalised by
      ``mean = alpha m + (1 - alpha) mu_e`` and ``var = beta v + (1 - beta) var_e + beta (1 - beta) (m - mu_e)^2``,
      where mu_e and var_e are the running statistics.

    ``alpha`` and ``beta`` are buffers, one of each per layer, in the state dict; as other buffers they are averaged
    over ranks by SyncStatisticsHook (or mmengine's SyncBuffersHook). Any BN checkpoint loads unchanged.

    Estimation ('online', 'offline'; evalnorm, Eq. 7 to 9) minimises the mean over elements of
    ``|(x - mu_B) / sigma_B - (x - mean) / sqrt(var + eps)|``, x taken for a constant, over a strided subset of the
    elements. The step rule is AdaGrad with learning rate 0.05, projected on [0, 1]: one step in four training batches
    of 'online', one in each batch of 'offline'.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance. Default 1e-5.
        momentum (float or None): As in BN; 0 keeps the running statistics. Default 0.1.
        mode (str): 'rule', alpha = beta = 1 / B^2 (default); 'simple', 1 / B; 'online', estimated while training,
            starting from the rule; 'offline', estimated on a finished network by :func:`estimate_offline`.
        batch_size (int): B, the samples that training normalises together (in a RoI head: of RoIs). Default None: what
            training saw, a running mean that is in the state dict. With neither, evaluation is BN's, and says so.
        virtual_batch_size (int): Training normalises each run of so many samples by itself (evalnorm, Section 4.1:
            normalization batches smaller than SGD's); the running statistics take the mean over the runs.
        frozen (bool): See :class:`~mmnorm.norms.base.PlaneNorm`.

    The paper leaves open how its Table 2 (c) uses fixed statistics. ``frozen=True`` normalises training batches by the
    running ones (the standard paradigm); ``momentum=0`` with ``requires_grad=False`` normalises them by their own.

    Raises:
        ValueError: Unknown mode, or a batch size below 1.
    """

    norm_eval_note = 'It is exactly BN by its running statistics then, and estimates nothing.'

    def __init__(self, num_features, eps=1e-5, momentum=0.1, mode='rule', batch_size=None, virtual_batch_size=None,
                 frozen=False):
        name = type(self).__name__
        if mode not in _MODES:
            raise ValueError(f'{name}: mode={mode!r} is unknown; these would do: {", ".join(_MODES)}')
        for argument, value in (('batch_size', batch_size), ('virtual_batch_size', virtual_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f'{name}: {argument}={value}; it must be at least 1')
        self.mode, self.batch_size, self.virtual_batch_size = mode, batch_size, virtual_batch_size
        super().__init__(num_features, eps, momentum, frozen)

    def _reset_control_parameters(self):
        self.register_buffer('alpha', torch.tensor(0.))
        self.register_buffer('beta', torch.tensor(0.))
        self.register_buffer('mean_batch_size', torch.tensor(0.))  # 0: unknown
        self.register_buffer('squared_gradients', torch.zeros(2))  # AdaGrad's
        self._estimate_every = 4 if self.mode == 'online' else 0  # training batches
        self._batches = 0
        self._knows_batch_size = self.batch_size is not None
        self._seen_batch_size = None  # the only one that training had so far
        if self._knows_batch_size:
            self.mean_batch_size.fill_(self.batch_size)
            self._follow_rule(torch.ones_like(self.alpha))

    def forward(self, x):
        self._check_input(x)
        if self.training and (x.numel() or self._ranks()):
            return self._train(x)
        if x.numel() == 0 or torch.is_grad_enabled() and not _exporting():
            self._note_norm_eval()
            return self.running_affine(x)
        # asked again while it is unknown: who copies buffers, as averaged models do, copies no attributes
        self._knows_batch_size = self._knows_batch_size or bool(self.mean_batch_size > 0)
        if not self._knows_batch_size:
            warn_once(f'{type(self).__name__} evaluates as BN: neither batch_size nor training has told it the '
                      'normalization batch size. Set batch_size in its norm_cfg to that of the training.')
            return self.running_affine(x)
        return normalize(x, self.statistics, self.eps)

    def statistics(self, mean, var, count):
        return *self._mixed(mean, var, self.running_mean, self.running_var), self.weight, self.bias

    def _mixed(self, mean, var, running_mean, running_var):
        """evalnorm, Eq. 5 and 6."""
        running_mean, running_var, alpha, beta = (
            value.to(mean.dtype) for value in (running_mean, running_var, self.alpha, self.beta))
        distance = mean - running_mean
        between = torch.addcmul(beta, beta, beta, value=-1)
        return (torch.addcmul(running_mean, alpha, distance),
                torch.lerp(running_var, var, beta).addcmul(distance.square(), between))

    def _train(self, x):
        if not self._ranks():
            self.see_batch_size(min(len(x), self.virtual_batch_size or len(x)))
        if self._estimate_every:
            return self._train_and_estimate(x)
        if self._ranks() or self.virtual_batch_size:
            return self._train_on_plane(x)[0]
        return nn.BatchNorm2d.forward(self, x)

    @torch.compiler.disable
    def _train_and_estimate(self, x):
        self._batches += 1
        due = self._batches % self._estimate_every == 0 and len(x)
        if due:
            # without this batch: a sample that is evaluated has no part in them either
            running = self.running_mean.clone(), self.running_var.clone()
        if self._ranks() or self.virtual_batch_size:
            y, mean, rstd = self._train_on_plane(x)
        else:
            # what F.batch_norm calls; it also gives the batch's mean and 1 / sigma
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            y, mean, rstd, *_ = torch._batch_norm_impl_index(
                x, self.weight, self.bias, self.running_mean, self.running_var, True, momentum, self.eps,
                torch.backends.cudnn.enabled)
        if due:
            self._estimate(x.detach(), mean.detach(), rstd.detach(), *running)
        return y

    def _train_on_plane(self, x):
        batch = []

        def statistics(mean, var, count):
            if self.virtual_batch_size and not self._ranks():
                size = self.virtual_batch_size
                batch[:] = self.run_statistics(mean.split(size), var.split(size), count)
            else:
                batch[:] = self.batch_statistics(mean, var, count)
            return *batch, self.weight, self.bias

        y = normalize(x, statistics, self.eps)
        mean, var = batch
        return y, mean, torch.rsqrt(var + self.eps)

    @torch.no_grad()
    def _estimate(self, x, batch_mean, batch_rstd, running_mean, running_var):
        """One step of alpha and beta down the auxiliary loss (evalnorm, Eq. 9).

        Args:
            x (Tensor): The batch, (N, C, *S).
            batch_mean, batch_rstd (Tensor): What it was normalised by, (C,) or (N, C).
            running_mean, running_var (Tensor): Running statistics before this batch, (C,).
        """
        x = x[:max(1, _SAMPLE_ELEMENTS // x[0].numel())]
        mean, var = moments(x)
        batch_mean, batch_rstd = (s.expand(self.num_features) if s.dim() == 1 else s[:len(x)]
                                  for s in (batch_mean, batch_rstd))
        distance = mean - running_mean
        mixed_mean, mixed_var = self._mixed(mean, var, running_mean, running_var)
        rstd = torch.rsqrt(mixed_var + self.eps)
        x = x.reshape(*x.shape[:2], -1)
        stride = -(-x.shape[2] // _POSITIONS)
        x = x[:, :, stride // 2::stride].to(mean.dtype)
        normalized = (x - mixed_mean[..., None]) * rstd[..., None]
        sign = (normalized - (x - batch_mean[..., None]) * batch_rstd[..., None]).sign_()
        slope_alpha = (sign.mean(2) * distance * rstd).mean().neg()
        dvar = var - running_var + (1 - 2 * self.beta) * distance.square()
        slope_beta = ((sign * normalized).mean(2) * rstd.square() * dvar).mean() / -2
        slopes = torch.stack([slope_alpha, slope_beta]).to(self.squared_gradients)
        self.squared_gradients.addcmul_(slopes, slopes)
        steps = slopes * torch.rsqrt(self.squared_gradients.clamp(min=1e-30)) * _STEP
        for value, step in zip((self.alpha, self.beta), steps):
            value.sub_(step).clamp_(0, 1)

    @torch.no_grad()
    def see_batch_size(self, samples):
        if self.batch_size is not None or not torch.is_tensor(samples) and samples in (0, self._seen_batch_size):
            return
        if not torch.is_tensor(samples):
            # the only size that training had so far needs no further look
            self._seen_batch_size = None if self._knows_batch_size else samples
            self._knows_batch_size = True
        before = self.mean_batch_size.clone()
        samples = torch.as_tensor(samples).to(before)
        seen = torch.where(before > 0, torch.lerp(before, samples, 0.1), samples)
        self.mean_batch_size.copy_(torch.where(samples > 0, seen, before))
        self._follow_rule(torch.ones_like(before) if self.mode in ('rule', 'simple') else before == 0)

    @torch.no_grad()
    def _follow_rule(self, where):
        """Set alpha and beta by the rule where a condition holds; a batch size that is unknown makes them 0, BN's."""
        size = self.mean_batch_size
        rule = torch.where(size > 0, size.clamp(min=1).pow(-1 if self.mode == 'simple' else -2), 0)
        for value in (self.alpha, self.beta):
            value.copy_(torch.where(where > 0, rule, value))

    def _one_value_each(self, x):
        size = len(x)
        if self.virtual_batch_size and size:
            size = size % self.virtual_batch_size or min(size, self.virtual_batch_size)
        return size * prod(x.shape[2:]) == 1

    def _load_from_state_dict(self, state_dict, prefix, *args):
        from_bn = prefix + 'alpha' not in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.batch_size is not None:
            self.mean_batch_size.fill_(self.batch_size)
        self._knows_batch_size, self._seen_batch_size = bool(self.mean_batch_size > 0), None
        if from_bn or self.mode in ('rule', 'simple'):
            self._follow_rule(torch.ones_like(self.alpha))

    def extra_repr(self):
        return (f'{super().extra_repr()}, mode={self.mode}, batch_size={self.batch_size}, '
                f'virtual_batch_size={self.virtual_batch_size}')


class SyncEN(EN):
    """:class:`EN` with batches normalised over all ranks; B counts the samples of all. For arguments see there."""

    sync = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.virtual_batch_size is not None:
            raise ValueError('SyncEN: virtual_batch_size makes normalization batches smaller than those of a process, '
                             'SyncEN larger; choose one of the two')


def estimate_offline(model, batches, forward=None):
    """Estimate alpha and beta of the EN layers of a finished network (evalnorm, Section 3.4, offline estimation).

    EN layers normalise each batch by its own statistics, everything else evaluates. Alpha and beta change, and the sums
    of AdaGrad, which start at 0.

    Args:
        model (nn.Module): Network with EN layers of ``mode='offline'`` or ``'online'``.
        batches (iterable): Training batches, of the training's size; one step per batch, a few hundred are plenty.
        forward (callable): ``(model, batch) -> None``. Default ``model(batch)``; for an mmengine model
            ``lambda model, batch: model.test_step(batch)``.

    Returns:
        dict[str, tuple[float, float]]: Layer name to alpha and beta.

    Raises:
        ValueError: The network has no such layer, or there are no batches.
    """
    layers = {name: layer for name, layer in model.named_modules()
              if isinstance(layer, EN) and layer.mode in ('online', 'offline')}
    if not layers:
        raise ValueError("the network has no EN layer to estimate: set mode='offline' in its norm_cfg")
    with evaluating(model), _estimating(list(layers.values())):
        run(model, batches, forward, 'to estimate alpha and beta on')
    _average_over_ranks(list(layers.values()))
    return {name: (float(layer.alpha), float(layer.beta)) for name, layer in layers.items()}


def _average_over_ranks(layers):
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    buffers = [buffer for layer in layers for buffer in (layer.alpha, layer.beta, layer.mean_batch_size)]
    values = torch.stack(buffers) / distributed.get_world_size()
    distributed.all_reduce(values)
    for buffer, value in zip(buffers, values):
        buffer.copy_(value)


@contextlib.contextmanager
def _estimating(layers):
    """Normalise by batch statistics and estimate in these layers of an evaluated network; put the rest back after."""
    attributes = 'momentum', '_estimate_every', '_knows_batch_size', '_seen_batch_size'
    buffers = 'num_batches_tracked', 'mean_batch_size'
    before = {layer: ({name: getattr(layer, name) for name in attributes},
                      {name: getattr(layer, name).clone() for name in buffers}) for layer in layers}
    for layer in layers:
        layer.training, layer.momentum, layer._estimate_every = True, 0., 1
        layer.squared_gradients.zero_()
    try:
        yield
    finally:
        for layer, (of_layer, values) in before.items():
            unknown = not values['mean_batch_size']
            for name, value in of_layer.items():
                if not (unknown and name in ('_knows_batch_size', '_seen_batch_size')):
                    setattr(layer, name, value)
            layer.num_batches_tracked.copy_(values['num_batches_tracked'])
            if not unknown:
                layer.mean_batch_size.copy_(values['mean_batch_size'])


def _exporting():
    # newer than the oldest torch that works
    return getattr(torch.compiler, 'is_exporting', bool)() or torch.jit.is_tracing()
