"""Noise on BN's statistics: how much a network depends on their estimation (paper xbn, Eq. 5, Figures 8 and A9)."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmnorm.blocks import residual_blocks
from mmnorm.norms.whitening import Whitening


@contextlib.contextmanager
@torch.no_grad()
def perturbed(layers: Iterable[nn.Module], delta: float, seed: int = 0) -> Iterator[None]:
    """Disturb the running statistics of some layers inside; the originals come back whatever happens (xbn, Eq. 5).

    ``mean * (1 + d_mu)`` and ``var * (1 + d_sigma)``, both uniform in [-delta, delta], drawn for each channel of each
    layer. The same seed draws the same noise, scaled by delta, on every device.

    Args:
        layers (iterable[nn.Module]): Layers with running statistics, such as :func:`first_norms` gives.
        delta (float): Noise magnitude, in [0, 1]: beyond 1 variances would be negative.
        seed (int): Of the noise.

    Raises:
        ValueError: ``delta`` is outside [0, 1], or a layer does not normalize by its running variance (BW, SW).
    """
    layers = list(layers)
    whitening = next((layer for layer in layers if isinstance(layer, Whitening)), None)
    if whitening is not None:
        raise ValueError(
            f'{type(whitening).__name__} whitens by a running matrix, to which noise on variances does nothing: choose '
            'layers that normalize by running variances'
        )
    if not 0 <= delta <= 1:
        raise ValueError(f'delta={delta}: the noise magnitude must be in [0, 1]; beyond it variances are negative')
    generator = torch.Generator().manual_seed(seed)
    originals: list[tuple[Any, Any]] = [
        (buffer, buffer.clone())
        for layer in layers
        for buffer in (getattr(layer, name) for name in ('running_mean', 'running_var'))
    ]
    try:
        for buffer, original in originals:
            noise = torch.rand(original.shape, generator=generator, dtype=torch.float64) * 2 - 1
            buffer.copy_(original * (1 + delta * noise).to(original))
        yield
    finally:
        for buffer, original in originals:
            buffer.copy_(original)


def first_norms(backbone: nn.Module, blocks: int) -> dict[str, nn.Module]:
    """The first BN of each of a backbone's first residual blocks: xbn's disturbed blocks (Figure 8: 6; A9: 1, 6, 13).

    Args:
        backbone (nn.Module): One that :func:`mmnorm.blocks.place_xbn` takes.
        blocks (int): Number of blocks.

    Returns:
        dict[str, nn.Module]: Layers by their name in the backbone. A block without BN has none.

    Raises:
        TypeError: It does not take that one.
        ValueError: It has fewer blocks, or none of them has a BN.
    """
    named = residual_blocks(backbone)
    if not 1 <= blocks <= len(named):
        raise ValueError(f'the first {blocks} blocks were asked for; this {type(backbone).__name__} has {len(named)}')
    found: dict[str, nn.Module] = {}
    for _, block_name, block in named[:blocks]:
        for name, layer in block.named_modules():
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
                found[f'{block_name}.{name}'] = layer
                break
    if not found:
        raise ValueError(f'none of the first {blocks} blocks of this {type(backbone).__name__} has a BN')
    return found
