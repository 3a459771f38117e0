"""Which norm takes the output of which convolution, as forward passes show."""

import contextlib
import gc
from collections import defaultdict
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from mmnorm.norms.modes import evaluating

from .layers import is_norm

_IMAGE = 128  # pixels of the random images on which networks are tried


class Dataflow:
    """What the norms of a network took, and what took the outputs of its convolutions.

    Attributes:
        sources (dict[Module, set]): Norm to the convolutions whose outputs it was given, None for any other tensor.
            Norms that no pass reached are not in it.
        takers (dict[Module, set]): Convolution to the norms that were given its outputs.
        elsewhere (set[Module]): Convolutions whose output or weight something else took, or that is still held after
            the pass, such as an output of the network.
        called (set[Module]): Convolutions that a pass reached.
    """

    def __init__(self) -> None:
        self.sources: dict[nn.Module, set] = defaultdict(set)
        self.takers: dict[nn.Module, set] = defaultdict(set)
        self.elsewhere: set[nn.Module] = set()
        self.called: set[nn.Module] = set()

    def update(self, other: 'Dataflow') -> None:
        """Add what another pass has shown of norms that none before has reached."""
        self.sources.update({norm: convs for norm, convs in other.sources.items() if norm not in self.sources})
        for conv, norms in other.takers.items():
            self.takers[conv] |= norms
        self.elsewhere |= other.elsewhere
        self.called |= other.called


def observe(model: nn.Module, norms: Set[nn.Module], example_inputs: Any = None) -> Dataflow:
    """Watch norms and the convolutions of a network in forward passes, in evaluation mode and without gradients.

    Without example inputs the network is given a random image. Where it cannot take that, or leaves norms out, its
    parts are, from the outside in.

    Args:
        model (nn.Module): A network.
        norms (set[Module]): Norms of it to look for; passes end when all are reached.
        example_inputs (Tensor, tuple, dict or None): The input; a tuple of positional, a dict of keyword arguments.

    Returns:
        Dataflow: Of all passes that went through.
    """
    seen = Dataflow()
    with evaluating(model), _convolving_and_normalizing(model):
        if example_inputs is not None:
            seen.update(_watch(model, example_inputs))
        for part in model.modules():
            image = _random_image(part)
            if is_norm(part) or image is None or norms & {*part.modules()} <= seen.sources.keys():
                continue
            with contextlib.suppress(Exception):  # a part that takes something else is no fault, but shows nothing
                seen.update(_watch(part, image))
    return seen


@contextlib.contextmanager
def _convolving_and_normalizing(model):
    """ConvModules of mmcv that fold in each forward pass (``efficient_conv_bn_eval``) do not meanwhile."""
    folding = [m for m in model.modules() if getattr(m, 'efficient_conv_bn_eval_forward', None) is not None]
    try:
        for module in folding:
            module.turn_on_efficient_conv_bn_eval(False)
        yield
    finally:
        for module in folding:
            module.turn_on_efficient_conv_bn_eval(True)


def _random_image(module):
    """Noise for the first convolution of a module, or None if there is none."""
    conv = next((m for m in module.modules() if isinstance(m, _ConvNd)), None)
    if conv is None or conv.weight.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)
    axes = conv.weight.dim() - 2
    return torch.rand(1, conv.in_channels, *[_IMAGE] * axes, generator=generator).to(conv.weight)


def _watch(module, inputs):
    """The dataflow of one forward pass."""
    flow = Dataflow()
    watch = _Watch(flow)
    handles = []
    try:
        for layer in module.modules():
            if is_norm(layer) or isinstance(layer, _ConvNd):
                handles.append(layer.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True))
                handles.append(layer.register_forward_hook(watch.leave, always_call=True))
            if isinstance(layer, _ConvNd) and layer._parameters.get('weight') is not None:
                watch.weights[layer.weight] = layer
        with torch.random.fork_rng(devices=[]), watch:
            if isinstance(inputs, dict):
                held = module(**inputs)
            else:
                held = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    watch.close()
    del held
    return flow


class _Watch(TorchDispatchMode):
    """Sees every operation of a pass, and by its hooks which layer runs it."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow
        self.made = WeakIdKeyDictionary()  # outputs of convolutions that are still there
        self.weights = WeakIdKeyDictionary()
        self.running: Any = None

    def enter(self, layer, args, kwargs):
        self.running = layer
        if isinstance(layer, _ConvNd):
            self.flow.called.add(layer)
            return
        for given in tree_leaves((args, kwargs)):
            if torch.is_tensor(given):
                conv = self.made.get(given)
                self.flow.sources[layer].add(conv)
                self.flow.takers[conv].add(layer)

    def leave(self, layer, args, output):
        self.running = None
        if isinstance(layer, _ConvNd) and torch.is_tensor(output):
            self.made[output] = layer

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._taken(value)
        return func(*args, **kwargs)

    def _taken(self, value):
        """Note a tensor that an operation is given."""
        if value in self.made and not is_norm(self.running):
            self.flow.elsewhere.add(self.made[value])
        if value in self.weights and getattr(self.running, 'weight', None) is not value:
            self.flow.elsewhere.add(self.weights[value])

    def close(self):
        """The pass is over: outputs of convolutions that still exist are held by something."""
        if len(self.made):
            gc.collect()
        self.flow.elsewhere.update(self.made.values())
