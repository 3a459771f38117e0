"""What a layer learns beside gamma and beta, and keeps beside BN's statistics; each tensor starts from one number."""

from typing import Any

import torch
from torch import Tensor, nn


class Controls:
    """The part of a norm layer (``nn.Module``) that knows what it learns."""

    #: What the layer learns beside gamma and beta: name to initial value.
    control_parameters: dict[str, float] = {}
    #: What it keeps beside BN's statistics: name to initial value.
    control_buffers: dict[str, float] = {}
    #: Why the output is not 0 where a host has set weight and bias to 0 (zero_init_residual); '' where it is.
    why_not_zero: str = ''
    weight: Any
    bias: Any

    @classmethod
    def added_to_bn(cls) -> dict[str, float]:
        """What the layer's state dict has beside BN's, marks aside: name to initial value."""
        return {**cls.control_parameters, **cls.control_buffers}

    def control_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a control parameter or buffer; None if this layer has no such one."""
        raise NotImplementedError

    def put_controls(self: Any, device=None, dtype=None) -> None:
        """Give the layer these parameters and buffers."""
        for name, value in self.added_to_bn().items():
            shape = self.control_shape(name)
            if shape is not None:
                tensor = torch.full(shape, value, device=device, dtype=dtype)
                if name in self.control_parameters:
                    self.register_parameter(name, nn.Parameter(tensor))
                else:
                    self.register_buffer(name, tensor)

    @torch.no_grad()
    def reset_controls(self: Any) -> None:
        """Set them to their start."""
        own = {**self._parameters, **self._buffers}
        for name, start in self.added_to_bn().items():
            value = own.get(name)
            if value is not None:  # torch's constructor comes here before there are any
                value.fill_(start)

    def learned(self) -> list[Tensor | None]:
        """Gamma, beta and the control parameters, or what was put in their place, such as a hypernetwork's tensors."""
        return [getattr(self, name, None) for name in ('weight', 'bias', *self.control_parameters)]

    @property
    def gamma_beta(self) -> tuple[Any, Any]:
        """Weight and bias of each channel, (C,) each; 1 and 0 where there are none."""
        return 1.0 if self.weight is None else self.weight, 0.0 if self.bias is None else self.bias
