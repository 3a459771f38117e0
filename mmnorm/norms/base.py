"""The layers that normalizers are: what is checked, learned and held in a state dict."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmnorm.core import BN, Blend, blend, constant_affine, normalize, spelled_out, statistics_dtype
from mmnorm.terminal import config

from .arguments import DEVICE, DTYPE, FLAG, GROUP, NONE, checked, integer, note_stock_arguments, number, one_of
from .checks import called, check_input, refuse_script, warn_once
from .controls import Controls
from .levels import PerLevel, refuse_levels
from .marks import compare_marks, put_marks, reset_marks
from .passes import beside_saving_hooks
from .running import RunningStatistics

_BN_KEYS = frozenset(nn.BatchNorm2d(1).state_dict())


class PlaneNorm(Controls, RunningStatistics):
    """Base of the normalizers that keep BN statistics.

    A subclass defines ``statistics(mean, var, count)`` on the moment plane (see :func:`mmnorm.core.normalize`) and
    takes BN's part from :meth:`batch_statistics`. It is an ``nn.BatchNorm2d``, so that whatever looks for BN layers
    (norm_eval, norm_decay_mult, C4 heads, tools that recollect statistics) finds it, and its state dict has BN's names.
    A subclass with ``sync = True`` takes BN's part over all ranks.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance, above 0. Default 1e-5.
        momentum (float or None): Weight of the new value in the running statistics, from 0 to 1; None means their plain
            average.
        affine (bool): Whether gamma and beta exist. Default True.
        track_running_stats (bool): Whether running statistics exist; without them evaluation normalizes by the batch,
            as BN does. Default True.
        device, dtype: Of the parameters and statistics.
        bias (bool): Whether beta exists. Default True.
        frozen (bool): Statistics, affine and control parameters never change, in training too.
        process_group (ProcessGroup or None): Of a Sync norm: the ranks that BN's part is over. Default None: all.
        group_size (int or None): Of a Sync norm, instead of a process_group: each run of so many ranks is one, such as
            those of a machine. It divides the number of ranks. Default None.
        single_value (str): What training does with an input of one value for each of its statistics, as one image has
            behind a global pool: 'error' (default), or 'running', to normalize it as evaluation does, by the running
            statistics, which it does not change.
        per_level (int): Running statistics for each of so many calls in a pass, of a layer that the levels of a feature
            pyramid share: the layer is a :class:`~mmnorm.norms.PerLevel` of so many of these norms then. Default None:
            one set, as BN has.
        **stock: Arguments of other norms that say nothing to this one, such as GN's ``num_groups``, where only the type
            of a norm_cfg was changed: without effect, which is said once. Any other is an error.

    Shape:
        Input and output (N, C, *S) with any number of spatial axes; N may be 0.

    Raises:
        ValueError: An argument is out of range; the input's channels do not match; training has one value per channel.
        TypeError: An argument is of a wrong type or unknown; the input is not floating point.
    """

    _abbr_ = 'bn'  # mmcv's attribute prefix: a BN checkpoint fits key by key
    #: Where a mark's number is the index of a name: these names.
    mark_values: dict[str, tuple[str, ...]] = {}
    #: A BN's weight and bias by the names that they have in the layer, where its own weight and bias are others.
    bn_parameters: dict[str, str] = {}
    #: What evaluation mode means for this norm while the network trains (stock configs carry norm_eval=True).
    norm_eval_note = 'Gamma and beta train; the normalization uses running statistics that stay as they were loaded.'
    #: What that means where the network only evaluates, with gradients, and never ran after its train().
    evaluation_note = 'If the network only evaluates, its result is right.'
    #: What :attr:`is_held` is, where an argument says it.
    held: bool | None = None
    #: Whether eps may be 0: only where no variance of 0 can come.
    takes_eps_0 = False
    #: The paper's eps, where it is not BN's 1e-5, which hosts put into every norm_cfg that has none.
    own_eps: float | None = None
    # Whether no forward pass followed the last train(True), and whether the layer was put in evaluation mode then; here
    # for layers that were pickled when there were no such attributes
    _fresh = False
    _held = False

    def __new__(cls, *args, per_level: int | None = None, **kwargs) -> Any:
        if per_level is None:
            return super().__new__(cls)
        return PerLevel.build(lambda: cls(*args, **kwargs), integer(1).check(cls.__name__, 'per_level', per_level))

    @checked(
        eps=number(least=0),
        momentum=number(0, 1) | NONE,
        affine=FLAG,
        track_running_stats=FLAG,
        device=DEVICE | NONE,
        dtype=DTYPE | NONE,
        bias=FLAG,
        frozen=FLAG,
        single_value=one_of('error', 'running'),
        per_level=NONE,  # see __new__
        process_group=GROUP | NONE,
        group_size=integer(1) | NONE,
    )
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
        frozen: bool = False,
        single_value: str = 'error',
        per_level: None = None,
        process_group: Any = None,
        group_size: int | None = None,
        **stock: Any,
    ) -> None:
        where = f'{type(self).__name__}({num_features})'
        if self.sync:
            process_group = process_group or stock.pop('group', None)  # mmcv's name of it
        elif process_group is not None:
            stock['process_group'], process_group = process_group, None
        note_stock_arguments(where, type(self), stock)
        check_eps_0(self, where, eps)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.set_ranks(process_group, group_size)
        if affine and self.affine_shape != (num_features,):
            self.weight = nn.Parameter(self.weight.new_ones(self.affine_shape))
            self.bias = nn.Parameter(self.bias.new_zeros(self.affine_shape))
        if not bias:
            self.bias = None
        if track_running_stats and self.statistics_shape != (num_features,):
            self.running_mean = self.running_mean.new_zeros(self.statistics_shape)
            self.running_var = self.running_var.new_ones(self.statistics_shape)
        self.put_controls(device, dtype)
        put_marks(self, device)
        self.single_value = single_value
        if single_value == 'running' and not track_running_stats:
            raise ValueError(
                f"{where}: single_value='running' without running statistics; set track_running_stats=True"
            )
        self.frozen = self._held = frozen
        self._fresh = False
        if frozen:
            freeze(self)
            self.training = False

    @property
    def is_bn_in_evaluation(self) -> bool:
        """Whether the layer is BN in evaluation: an affine per channel that does not depend on the sample."""
        return False

    @property
    def sees_padding(self) -> bool:
        """Whether evaluation takes statistics over positions, those that pad an image to its batch's size included."""
        return not self.is_bn_in_evaluation or self.running_mean is None

    @property
    def affine_shape(self) -> tuple[int, ...]:
        """Shape of weight and bias."""
        return (self.num_features,)

    def control_shape(self, name: str) -> tuple[int, ...] | None:
        return (self.num_features,)

    def marks(self) -> dict[str, float]:
        """What evaluation computes and no other tensor shows, name to number (:mod:`mmnorm.norms.marks`)."""
        return {}

    def statistics(self, mean: Tensor, var: Tensor, count: int) -> tuple[Any, Any, Any, Any]:
        """Map the moment plane to the mean, variance, weight and bias to normalize with, broadcast to (N, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        if torch.compiler.is_compiling() or self._fresh:  # in this order: a compiler would make a graph for each value
            self._fresh = False
        if not self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            message = self.norm_eval_message()
            if message:
                warn_once(message)
        if self.single_value == 'running' and self._lacks_variance(x):
            self.training = False
            try:
                return self.normalize(x)
            finally:
                self.training = True
        return self.normalize(x)

    def check(self, x: Tensor) -> None:
        """Raise a TypeError or ValueError if the layer cannot normalize x."""
        check_input(self, x, self.num_features)
        if (self.running_mean is None) != (self.running_var is None):
            raise ValueError(f'{called(self)}: running_mean and running_var must both be None, or none of them')
        if self._lacks_variance(x) and (self.single_value == 'error' or self.running_mean is None):
            raise ValueError(
                f'{called(self)}: Expected more than 1 value per channel when training, got input size {x.size()}. '
                'One value has no variance, as that of one image behind a global pool. What works there: PN, or BGN '
                'with one group, whose statistics are over channels; a Sync norm over several ranks; no norm; more '
                "images for each process; or single_value='running' in norm_cfg, which normalizes it as evaluation does"
            )

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize x, which is checked: on the plane, or as BN where the layer is that."""
        if self.is_bn_in_evaluation and not self.by_batch:
            return self.running_affine(x)
        return self.on_plane(x, self.statistics, self.blend)

    def on_plane(
        self, x: Tensor, statistics: Callable, as_blend: Callable | None = None, takes_var: bool = True
    ) -> Tensor:
        """Normalize x by statistics of its moment plane, of which the layer's parameters are a part.

        Args:
            x (Tensor): (N, C, *S).
            statistics (callable): As :meth:`statistics`; what defines the layer, and what compilers and exporters read.
            as_blend (callable): As :meth:`blend`; what is computed where it gives something.
            takes_var (bool): Whether the statistics use the variance; a blend knows.
        """
        what = as_blend(x) if as_blend and self._may_blend(x) else None
        # parameters of another type are converted by autograd
        if what is not None and what.is_of(statistics_dtype(x)):
            return blend(x, what, self.eps)
        return normalize(x, beside_saving_hooks(statistics), self.eps, self.learned(), takes_var)

    def blend(self, x: Tensor) -> Blend | None:
        """What :meth:`statistics` is for x, where it has this form, whose gradient is written out; None where not."""
        return None

    def blended(self, x: Tensor, scopes: Sequence[int], **parts: Any) -> Blend:
        """A blend of BN's part in training, of the running statistics in evaluation, and of gamma and beta."""
        batch = self.tracker() if self.by_batch else self.held_statistics(statistics_dtype(x))
        peers = self.peers() if BN in scopes and self.spans_ranks() else None
        return Blend(scopes, batch, **{'weight': self.weight, 'bias': self.bias, 'peers': peers, **parts})

    def _may_blend(self, x):
        # subclasses of Tensor (DTensor) have rules of their own
        return x.numel() > 0 and not (spelled_out() or is_traceable_wrapper_subclass(x))

    def running_affine(self, x: Tensor) -> Tensor:
        """Evaluate as BN: normalize by the running statistics, a constant affine per channel."""
        mean, var = self.running_statistics()
        if mean is not None and self._is_constant(x):
            return constant_affine(x, mean, var, self.weight, self.bias, self.eps)
        if torch.is_grad_enabled() and mean is not None:
            # nn.BatchNorm2d leaves its buffers in the graph, whose gradients are wrong once later batches change them
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.eps)

    def _is_constant(self, x):
        """Whether gradients go through to x and nothing else; what reads or changes operations sees those of BN."""
        return (
            torch.is_grad_enabled()
            and x.requires_grad
            and not (spelled_out() or is_traceable_wrapper_subclass(x) or forward_ad._current_level >= 0)
            and not any(p is not None and p.requires_grad for p in (self.weight, self.bias))
        )

    def running_statistics(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance of each channel, (C,)."""
        return self.running_mean, self.running_var

    @property
    def is_held(self) -> bool:
        """Whether a network that trains holds the layer in evaluation mode: norm_eval, frozen stages, ``frozen=True``.

        That is so from a ``train()`` that ``eval()`` follows, with no forward pass between them, to the next of either.
        """
        return self._held if self.held is None else self.held

    def train(self, mode: bool = True) -> 'PlaneNorm':
        self._fresh = mode or self._fresh
        super().train(mode and not self.frozen)
        # also after the second of two eval(): frozen stages and norm_eval both call it
        self._held = self._fresh and not self.training
        return self

    def reset_running_stats(self) -> None:
        """As torch's, for tools that recollect statistics; a frozen layer keeps its own."""
        if not getattr(self, 'frozen', False):
            super().reset_running_stats()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set everything that the layer has to its start, of a frozen layer too."""
        if self.running_mean is not None:
            super().reset_running_stats()
        for value, start in ((self.weight, 1.0), (self.bias, 0.0)):
            if value is not None:
                value.fill_(start)
        self.reset_controls()
        reset_marks(self)

    def from_bn(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with which the layer starts from a BN; what starts as something else than that BN says so.

        Args:
            tensors (dict[str, Tensor]): What a checkpoint has of this layer, by their names; those of the layer itself
                come here too.

        Returns:
            dict[str, Tensor]: What is loaded in the place of those.
        """
        return tensors

    def __prepare_scriptable__(self):
        """Called by torch.jit.script."""
        refuse_script(self)

    def _check_input_dim(self, x):
        """torch's check, of four dimensions; ours is :meth:`check`."""

    def _lacks_variance(self, x):
        """Whether BN's part would be taken from one value for each of the statistics."""
        return self.by_batch and self._one_value_each(x) and not self.spans_ranks()

    def _one_value_each(self, x):
        """Whether each of the layer's statistics would have one value, so that no variance exists."""
        return x.numel() == self.num_features

    def norm_eval_message(self) -> str:
        """What a user should know of a layer that is in evaluation mode while the network trains; '' of others."""
        if self.training or self.frozen or not self._held or self.held is not None:
            return ''  # it trains, the network evaluates, or a user has said what is meant
        if self.running_mean is None or self.used_statistics == slice(0):
            return ''  # evaluation mode changes nothing
        if not any(p is not None and p.requires_grad for p in self.learned()):
            return ''
        return (
            f'{type(self).__name__} is in evaluation mode while the network trains, as norm_eval=True does: eval() '
            f'followed train(). {self.norm_eval_note} To train the norm in full set norm_eval=False '
            f'({config("_base_/live_norm.py")}); if this is intended, set frozen=True in its norm_cfg. '
            f'{self.evaluation_note}'
        )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        compare_marks(self, state_dict, prefix)
        own = {**self._parameters, **self._buffers}
        refuse_levels(self, state_dict, prefix)
        names = _BN_KEYS.union(self.added_to_bn())
        present = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        if present:
            state_dict.update({prefix + name: value for name, value in self.from_bn(present).items()})
        absent = [name for name, value in own.items() if value is None]
        dropped = [name for name in absent if state_dict.pop(prefix + name, None) is not None]
        if dropped:
            warn_once(
                f'{type(self).__name__}: {", ".join(dropped)} of {prefix[:-1] or "the layer"} and perhaps others are '
                'in the checkpoint and dropped, since the layer has none (affine, bias, track_running_stats): what the '
                'network computes changes.',
                key=f'{type(self).__name__} {dropped}',
            )
        for name, value in own.items():
            key = prefix + name
            if value is None:
                continue
            if key in state_dict:
                if state_dict[key].shape != value.shape and state_dict[key].squeeze().shape == value.squeeze().shape:
                    # the authors' released weights keep (1, C, 1, 1) and (1, C, 1)
                    state_dict[key] = state_dict[key].reshape(value.shape)
            elif name not in _BN_KEYS:
                # BN does not have it: a BN checkpoint leaves it at its default and is not called incomplete
                state_dict[key] = value.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'{self.num_features}, eps={self.eps}, momentum={self.momentum}, frozen={self.frozen}'


def check_eps_0(layer: Any, where: str, eps: float) -> None:
    """Raise a ValueError if eps is 0 and the layer must divide by a variance that may be 0."""
    if eps == 0 and not layer.takes_eps_0:
        raise ValueError(f'{where}: eps must be above 0: a constant channel has a variance of 0, and would give NaN')


def freeze(layer: nn.Module) -> None:
    """Make buffers of a layer's parameters: no optimizer and no ``requires_grad=True`` from a config reaches them."""
    for name, value in list(layer._parameters.items()):
        if value is not None:
            del layer._parameters[name]
            layer.register_buffer(name, value.detach())
