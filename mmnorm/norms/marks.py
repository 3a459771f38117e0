"""Marks: what a layer computes where its other tensors do not show it, in its state dict and compared when one loads.

IBN's tensors have the names and shapes of BN's, GW's those of GN's. A mark is a buffer of one integer. 0 stands for
what a layer without it computes, and is left out: BN and GN, their files and those of earlier versions have no marks.
"""

import torch
from torch import Tensor, nn

from .checks import warn_once


def put_marks(layer: nn.Module, device=None) -> None:
    """Give a layer the marks that its class and arguments make; again when these change."""
    for name, value in layer.marks().items():  # type: ignore[operator]  # both bases have it
        if value:
            layer.register_buffer(name, torch.tensor(value, device=device))
    for name in [name for name, value in layer._buffers.items() if value is None]:
        layer._buffers[name] = layer._buffers.pop(name)  # to the end: torch.export counts them among those before


def reset_marks(layer: nn.Module) -> None:
    """Set a layer's marks anew, as when its memory is new."""
    for name, value in layer.marks().items():  # type: ignore[operator]
        mark = layer._buffers.get(name)
        if mark is not None:  # torch's constructor resets before there are any
            mark.fill_(value)


def compare_marks(layer: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Warn if what is loaded into a layer was not computed as the layer computes; its own marks stay.

    Args:
        layer (nn.Module): Of this package.
        state_dict (dict[str, Tensor]): What is loaded; its marks become those of the layer.
        prefix (str): Of the layer's names in it.
    """
    name, norm = prefix[:-1] or 'the layer', type(layer).__name__
    # whatever has none of what the layer learns beside gamma and beta is for from_bn, where there is one
    controls = layer.control_parameters if hasattr(layer, 'from_bn') else ()
    leaves = [leaf for leaf in controls if getattr(layer, leaf, None) is not None]  # type: ignore[union-attr]
    leaves = leaves or ['weight', 'bias', 'running_mean']
    loads = any(prefix + leaf in state_dict for leaf in leaves)
    for mark, own in layer.marks().items():  # type: ignore[operator]
        theirs = state_dict.pop(prefix + mark, None)
        if mark in layer._buffers:
            state_dict[prefix + mark] = layer._buffers[mark].detach()  # type: ignore[union-attr]
        if theirs is None and own and loads:
            warn_once(
                f'{norm}: the checkpoint has no {mark} of {name} and perhaps others. If it is of another norm, such as '
                f'BN or GN, the network computes something else with {norm} and has to be trained; if it is of {norm} '
                'and was written by mmnorm before it had this mark, all is well.',
                key=f'{norm} {mark}',
            )
        elif theirs is not None and not theirs.is_meta and round(float(theirs)) != own:
            values = layer.mark_values.get(mark)  # type: ignore[union-attr,operator]
            there, here = (values[round(float(v))] if values else round(float(v)) for v in (theirs, own))
            warn_once(
                f'{norm}: {mark} is {there} in the checkpoint and {here} here, in {name} and perhaps others, so the '
                f'network computes something else than what was trained. Give norm_cfg the arguments of the training; '
                f'here they make {layer}.',
                key=f'{norm} {mark} {there} {here}',
            )
