"""Images of several sizes in one batch, each normalized as if it were alone."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from mmnorm.norms import BatchFreeNorm, PlaneNorm
from mmnorm.norms.checks import warn_once

# Strides of a map over its image that are looked for: 1/8 (upsampled) to 1024
_STRIDES = [2.0**exponent for exponent in range(-3, 11)]


def padding_readers(model: nn.Module, leave: Iterable[nn.Module] = ()) -> dict[str, nn.Module]:
    """The norm layers of a network whose evaluation takes statistics over the padding of a batch.

    Args:
        model (nn.Module): A network in evaluation mode.
        leave (iterable[nn.Module]): Parts of it whose input is not of images, such as heads on regions of interest.

    Returns:
        dict[str, nn.Module]: By name: those of ours that say so (``sees_padding``), stock GroupNorm, and InstanceNorm
        and BatchNorm without running statistics.
    """
    left = {module for part in leave for module in part.modules()}
    return {name: layer for name, layer in model.named_modules() if layer not in left and _sees_padding(layer)}


def _sees_padding(layer):
    if isinstance(layer, (PlaneNorm, BatchFreeNorm)):
        return layer.sees_padding
    return isinstance(layer, nn.GroupNorm) or isinstance(layer, _NormBase) and layer.running_mean is None


def _is_by_sample(layer):
    """Whether a layer normalizes each sample without regard to the others, in the mode that it is in."""
    if isinstance(layer, PlaneNorm):
        return not layer.by_batch or layer.used_statistics == slice(0)
    return not isinstance(layer, _BatchNorm)


@contextlib.contextmanager
def valid_regions(
    model: nn.Module, sizes: Sequence[tuple[int, int]], padded_to: tuple[int, int], leave: Iterable[nn.Module] = ()
) -> Iterator[None]:
    """Normalize each image of a padded batch by its own part of a map: its result does not depend on its neighbors.

    Within the context the layers of :func:`padding_readers` take statistics of each sample over the part of the map
    that the image would have alone, at the top left. The rest of their output is 0, which is what the zero padding of
    the convolution behind them would be for the image alone. A map of N x H x W is taken to be of the images if N is
    their number, and to have the stride, a power of two, that makes H x W of ``padded_to`` when rounded up. A layer
    that normalizes by the batch, as in training, is left alone. What is left, or has a map of no such stride, is said
    in a warning; in the second case the image's share of the map, rounded up, is taken.

    Args:
        model (nn.Module): A network.
        sizes (sequence[tuple[int, int]]): Height and width in pixels that each image would be padded to alone.
        padded_to (tuple[int, int]): Height and width of the batch.
        leave (iterable[nn.Module]): See :func:`padding_readers`.

    Raises:
        ValueError: There are no sizes, or one is not positive or exceeds ``padded_to``.
        RuntimeError: The network is in such a context already.
    """
    padded_to = (int(padded_to[0]), int(padded_to[1]))
    sizes = [(int(height), int(width)) for height, width in sizes]
    wrong = [size for size in sizes if not all(0 < own <= batch for own, batch in zip(size, padded_to))]
    if wrong or not sizes:
        raise ValueError(
            f'valid_regions: sizes must have a height and width for each image, from 1 up to those of the batch, '
            f'{padded_to}; got {wrong[0] if wrong else "none"}'
        )
    readers = padding_readers(model, leave) if any(size != padded_to for size in sizes) else {}
    if any(isinstance(layer.forward, _ImageByImage) for layer in readers.values()):
        raise RuntimeError('valid_regions: the network is in another such context, which has to end first')
    by_batch = [name for name, layer in readers.items() if not _is_by_sample(layer)]
    if by_batch:
        warn_once(
            f'valid_regions: {len(by_batch)} layers normalize by the statistics of the whole batch, its padding '
            f'included, and are left alone; first: {by_batch[0]}'
        )
    hidden = {name: vars(layer).get('forward') for name, layer in readers.items() if name not in by_batch}
    try:
        for name in hidden:
            vars(readers[name])['forward'] = _ImageByImage(name, readers[name].forward, sizes, padded_to)
        yield
    finally:
        for name, forward in hidden.items():
            if forward is None:
                vars(readers[name]).pop('forward', None)
            else:
                vars(readers[name])['forward'] = forward


class _ImageByImage:
    """A layer's forward, on the part of its input that each image would have alone."""

    def __init__(self, name: str, forward: Callable, sizes: list[tuple[int, int]], padded_to: tuple[int, int]) -> None:
        self.name, self.forward, self.sizes, self.padded_to = name, forward, sizes, padded_to

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() < 4 or len(x) != len(self.sizes):
            if x.dim() > 2:
                warn_once(
                    f'valid_regions: the input of {self.name} is not one map for each image of the batch; it is '
                    'normalized as a whole'
                )
            return self.forward(x)
        regions = self.regions(x.shape[-2], x.shape[-1])
        y = None
        for height, width in dict.fromkeys(regions):
            samples = [n for n, region in enumerate(regions) if region == (height, width)]
            part = self.forward(x[samples, ..., :height, :width])
            if y is None:
                y = torch.zeros_like(x, dtype=part.dtype)
            y[samples, ..., :height, :width] = part
        return y  # type: ignore[return-value]  # there are images

    def regions(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width that each image has of a map."""
        for stride in _STRIDES:
            if (_strided(self.padded_to[0], stride), _strided(self.padded_to[1], stride)) == (height, width):
                return [(_strided(own[0], stride), _strided(own[1], stride)) for own in self.sizes]
        if self.padded_to[0] % height or self.padded_to[1] % width:
            warn_once(
                f"valid_regions: the map of {self.name} has no stride over the batch's images that is a power of two; "
                "each image's share of it, rounded up, is taken for its part"
            )
        return [
            (-(-own[0] * height // self.padded_to[0]), -(-own[1] * width // self.padded_to[1])) for own in self.sizes
        ]


def _strided(size, stride):
    return int(-(-size // stride))
