"""The layer that normalizers without running statistics are."""

from torch import Tensor, nn

from mmnorm.core import like

from .arguments import DEVICE, DTYPE, FLAG, NONE, checked, note_no_effect, note_stock_arguments, number
from .base import check_eps_0, freeze
from .checks import check_input, refuse_script
from .controls import Controls
from .marks import compare_marks, put_marks, reset_marks


class BatchFreeNorm(Controls, nn.GroupNorm):
    """Base of the normalizers that keep no running statistics: training and evaluation are the same.

    A subclass defines ``normalize(x)``. It is an ``nn.GroupNorm``, so that norm_decay_mult finds it.

    Args:
        num_features (int): Number of channels C.
        eps (float): Added to the variance, above 0. Default 1e-5.
        momentum, track_running_stats: Without effect, which is said once; they may stand in a config whose type is
            changed.
        affine (bool): Whether gamma and beta exist. Default True.
        device, dtype: Of the parameters.
        bias (bool): Whether beta exists. Default True.
        frozen (bool): Gamma and beta never change; they are buffers then.
        **stock: As of :class:`~mmnorm.norms.base.PlaneNorm`.

    Shape:
        Input and output (N, C, *S); N may be 0.
    """

    mark_values: dict[str, tuple[str, ...]] = {}  # this and the next ones: as of PlaneNorm
    takes_eps_0 = False
    own_eps: float | None = None

    @checked(
        eps=number(least=0),
        momentum=number(0, 1) | NONE,
        affine=FLAG,
        track_running_stats=FLAG | NONE,
        device=DEVICE | NONE,
        dtype=DTYPE | NONE,
        bias=FLAG,
        frozen=FLAG,
    )
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum=None,
        affine: bool = True,
        track_running_stats=None,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
        frozen: bool = False,
        **stock,
    ) -> None:
        where = f'{type(self).__name__}({num_features})'
        note_stock_arguments(where, type(self), stock)
        check_eps_0(self, where, eps)
        for name, value in dict(momentum=momentum, track_running_stats=track_running_stats).items():
            if value is not None:
                note_no_effect(type(self), name, 'it keeps no running statistics')
        super().__init__(1, num_features, eps, affine, device, dtype)
        if not bias:
            self.bias = None
        self.put_controls(device, dtype)
        put_marks(self, device)
        if frozen:
            freeze(self)

    #: Whether statistics are over positions, those that pad an image to its batch's size included.
    sees_padding = True

    def marks(self) -> dict[str, float]:
        """What the layer computes and no other tensor shows, name to number (:mod:`mmnorm.norms.marks`)."""
        return {}

    def control_shape(self, name: str) -> tuple[int, ...] | None:
        return (self.num_channels,)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize x, which is checked; a contiguous tensor of as many elements."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x, self.num_channels)
        return like(self.normalize(x).to(x.dtype), x)

    def __prepare_scriptable__(self):
        """Called by torch.jit.script."""
        refuse_script(self)

    def reset_parameters(self):
        super().reset_parameters()
        self.reset_controls()
        reset_marks(self)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        compare_marks(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
