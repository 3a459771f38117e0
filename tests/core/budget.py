"""What each normalizer moves through a card's memory and launches there, and its Python, found without a card.

``python -m tests.core.budget`` writes the figures of today to ``budget.json`` beside this file, and prints what changed
of the counts, and the host time.

A unit is the input's elements, read or written once. Counted is one layer of 64 channels at (4, 64, 32, 32): forward
and backward in training, forward in evaluation without gradients; and beside that the same layer compiled, as inductor
plans it for an H100, at a shape where it splits sums as it does those of a detector's maps; 0 where a layer is left to
run eagerly. Host time is that of an eager layer over nn.BatchNorm2d's on the same machine, at a size where nothing else
counts: by the clock, so that no test compares it, and what is written stays where it changed by less than a fifth.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmnorm.files import read_json, write_json
from mmnorm.norms import NORMS

from .cards import FAKE, Counter, counting_driver, fake_card, kernels_on_fake_card, on_fake_card

PATH = Path(__file__).with_name('budget.json')
SHAPE = 4, 64, 32, 32
TYPES = 'float32', 'float16', 'bfloat16'
FORMATS = 'contiguous_format', 'channels_last'
TYPES_COMPILED = 'float32', 'bfloat16'
LAYERS = {
    'nn.BatchNorm2d': nn.BatchNorm2d,
    'RBN spatial': lambda channels: NORMS['RBN'](channels, center_stat='spatial_mean', scale_stat='spatial_std'),
    'RBN*': lambda channels: NORMS['RBN'](channels, scale_stat='channel_std'),
    'EN known': lambda channels: NORMS['EN'](channels, batch_size=4),
    **{name: norm for name, norm in NORMS.items() if not name.startswith('Sync') and name != 'EN'},
}
#: Counted on one of two ranks, each of whose collectives is a launch.
EXCHANGING = {name: norm for name, norm in NORMS.items() if name.startswith('Sync')}


@contextlib.contextmanager
def two_ranks() -> Iterator[None]:
    """A process group of which there is this rank alone: its collectives return at once."""
    distributed.init_process_group('fake', rank=0, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


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


def measure_compiled(name: str, dtype: str) -> dict[str, list]:
    """The same of a compiled layer."""
    from . import compiled  # of names that are torch's own, and other versions may not have

    return compiled.measure(LAYERS[name](SHAPE[1]), getattr(torch, dtype))


def host_times(rounds: int = 30, calls: int = 10) -> dict[str, dict[str, float]]:
    """Of each layer, over nn.BatchNorm2d's: the fastest of some rounds, in which all layers take turns."""
    x, grad = torch.randn(2, SHAPE[1], 2, 2, requires_grad=True), torch.randn(2, SHAPE[1], 2, 2)

    def train(layer):
        layer(x).backward(grad)

    @torch.no_grad()
    def evaluate(layer):
        layer(x)

    jobs = {
        (name, mode): (job, build(SHAPE[1]).train(mode == 'training'))
        for name, build in LAYERS.items()
        for mode, job in (('training', train), ('evaluation', evaluate))
    }
    best: dict[tuple, float] = {}
    with counting_driver(90):
        for _, (key, (job, layer)) in itertools.product(range(rounds), jobs.items()):
            begin = time.perf_counter()
            for _ in range(calls):
                job(layer)
            best[key] = min(best.get(key, float('inf')), time.perf_counter() - begin)
    return {
        name: {mode: round(best[name, mode] / best['nn.BatchNorm2d', mode], 1) for mode in ('training', 'evaluation')}
        for name in LAYERS
    }


def counts() -> dict:
    """Of every norm, type and memory format."""
    with two_ranks():
        return {
            name: {f'{dtype} {layout}': measure(build, dtype, layout) for dtype in TYPES for layout in FORMATS}
            for name, build in (LAYERS | EXCHANGING).items()
        }


def counts_compiled() -> dict:
    """Of every norm and type."""
    return {name: {f'{dtype} compiled': measure_compiled(name, dtype) for dtype in TYPES_COMPILED} for name in LAYERS}


def lines(counts: dict) -> list[str]:
    """One line for each count."""
    return [
        f'{name}, {what}, {mode}: {units} units, {launches} launches'
        for name, cases in counts.items()
        for what, modes in cases.items()
        for mode, (units, launches) in modes.items()
    ]


if __name__ == '__main__':
    before = read_json(PATH) if PATH.exists() else {}
    today = dict(
        torch=torch.__version__.partition('+')[0],
        counts=counts(),
        compiled=counts_compiled(),
        host_time=host_times(),
    )
    for name, times in today['host_time'].items():
        for mode, time_before in before.get('host_time', {}).get(name, {}).items():
            if abs(times[mode] / time_before - 1) < 0.2:
                times[mode] = time_before
    write_json(PATH, today)
    changed = [
        line
        for part in ('counts', 'compiled')
        for line in lines(today[part])
        if line not in lines(before.get(part, {}))
    ]
    print('\n'.join(changed) or 'counts as before')
    print("host time over nn.BatchNorm2d's, in training and in evaluation:")
    for name, times in today['host_time'].items():
        print(f'{name:16}', *(f'{value:5.1f}' for value in times.values()))
