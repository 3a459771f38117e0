"""What each normalizer moves through a card's memory and launches there, counted without a card.

``python -m tests.core.budget`` writes the counts of today to ``budget.json`` beside this file and prints what changed.

A unit is the input's elements, read or written once. Counted is one layer of 64 channels at (4, 64, 32, 32): forward
and backward in training, forward in evaluation without gradients.
"""

from pathlib import Path

import torch
from torch import nn

from mmnorm.files import read_json, write_json
from mmnorm.norms import NORMS

from .cards import FAKE, Counter, fake_card, kernels_on_fake_card, on_fake_card

PATH = Path(__file__).with_name('budget.json')
SHAPE = 4, 64, 32, 32
TYPES = 'float32', 'float16', 'bfloat16'
FORMATS = 'contiguous_format', 'channels_last'
LAYERS = {
    'nn.BatchNorm2d': nn.BatchNorm2d,
    'RBN spatial': lambda channels: NORMS['RBN'](channels, center_stat='spatial_mean', scale_stat='spatial_std'),
    'EN known': lambda channels: NORMS['EN'](channels, batch_size=4),
    **{name: norm for name, norm in NORMS.items() if not name.startswith('Sync') and name != 'EN'},
}


def measure(build, dtype: str, memory_format: str) -> dict[str, list]:
    """Units and launches of a layer, of its training and of its evaluation."""
    layer = build(SHAPE[1])
    with fake_card():
        layer = on_fake_card(layer)
        x = torch.randn(SHAPE, dtype=getattr(torch, dtype), device=FAKE)
        x = x.contiguous(memory_format=getattr(torch, memory_format)).requires_grad_()
        grad = torch.empty_like(x)
        found = {}
        for mode in ('training', 'evaluation'):
            layer.train(mode == 'training')
            with Counter(x) as counter, kernels_on_fake_card(counter):
                if mode == 'training':
                    layer(x).backward(grad)
                else:
                    with torch.no_grad():
                        layer(x)
            found[mode] = [round(counter.units, 2), counter.launches]
    return found


def budget() -> dict:
    """Of every norm, type and memory format, beside the PyTorch that it was counted with."""
    counts = {
        name: {f'{dtype} {layout}': measure(build, dtype, layout) for dtype in TYPES for layout in FORMATS}
        for name, build in LAYERS.items()
    }
    return dict(torch=torch.__version__.partition('+')[0], counts=counts)


def lines(counts: dict) -> list[str]:
    """One line for each count."""
    return [
        f'{name}, {what}, {mode}: {units} units, {launches} launches'
        for name, cases in counts.items()
        for what, modes in cases.items()
        for mode, (units, launches) in modes.items()
    ]


if __name__ == '__main__':
    before = lines(read_json(PATH)['counts']) if PATH.exists() else []
    today = budget()
    write_json(PATH, today)
    print('\n'.join(line for line in lines(today['counts']) if line not in before) or 'as before')
