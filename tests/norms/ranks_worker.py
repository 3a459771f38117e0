"""What test_ranks.py runs on every rank of a gloo group."""

import copy
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn

from mmnorm import set_step

from .cases import CHANNELS, build
from .sync_worker import batch, layer_of, trained

TIMEOUT = 2  # s, of ranks that part ways; of others nobody waits in vain


class Network(nn.Module):
    def __init__(self, cfg, **arguments):
        super().__init__()
        self.first, self.last = build(dict(cfg, **arguments)), build(dict(cfg, **arguments))

    def forward(self, x, used=('first', 'last')):
        for name in used:
            x = getattr(self, name)(x)
        return x


def images(rank=0):
    return torch.randn(2, CHANNELS, 4, 3, generator=torch.Generator().manual_seed(rank))


# ways to part, after a first step that all make

WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


def step(model, number=0, **kwargs):
    set_step(number)
    model(images(), **kwargs).sum().backward()


@way
def skips_a_layer(model, rank):
    step(model, 1, used=('last',) if rank else ('first', 'last'))


@way
def skips_the_last_layer(model, rank):
    step(model, 1, used=('first',) if rank else ('first', 'last'))


@way
def skips_a_backward_pass(model, rank):
    set_step(1)
    y = model(images())
    if not rank:
        y.sum().backward()
    step(model, 2)


@way
def has_another_backward_pass(model, rank):
    set_step(1)
    first, last = model.first(images()), model.last(images())
    (last if rank else first).sum().backward()


@way
def skips_a_step(model, rank):
    for number in (1, 2, 3):
        if not (rank and number == 2):
            step(model, number)


@way
def goes_on_after_an_exception(model, rank):
    for number in (1, 2):
        set_step(number)
        try:
            y = model.first(images())
            if rank and number == 1:
                raise ValueError('a bad batch')
            model.last(y)
        except ValueError:
            pass


@way
def has_another_type(model, rank):
    model.to(torch.float64 if rank else torch.float32)
    model(images().to(model.first.weight.dtype))


@way
def has_ended(model, rank):
    if not rank:
        step(model, 1)


def parts(name, cfg, rank, **arguments):
    """What a way of parting brings this rank: the error, if there is one, and after how many seconds."""
    model = Network(cfg, **arguments)
    step(model)
    start, error = time.monotonic(), ''
    try:
        WAYS[name](model, rank)
    except RuntimeError as raised:
        error = str(raised)
    finally:
        set_step(lambda: None)
    return dict(error=error, seconds=time.monotonic() - start)


# what goes right


def evaluates_alone(cfg, rank):
    """A rank with more batches to evaluate waits for no other, also where evaluation normalizes by the batch."""
    model = Network(cfg, track_running_stats=False).eval()
    for _ in range(1 + rank):
        y = model(images())
    return y.detach()


def partly_compiled(cfg, rank, compiled):
    """A layer that is compiled on some ranks."""
    torch._dynamo.reset()  # each task's group is another one
    layer = layer_of(cfg)
    x, grad = (t[2 * rank : 2 * rank + 2] for t in batch(4))
    run = torch.compile(layer, backend='eager', fullgraph=True) if rank in compiled else layer
    x = x.clone().requires_grad_()
    y = run(x)
    (y * grad).sum().backward()
    return dict(y=y.detach(), dx=x.grad, mean=layer.running_mean)


def over_some(cfg, rank, groups, by_size, copied):
    """Each group of ranks has a batch of its own, of which this rank has a share."""
    number = next(i for i, ranks in enumerate(groups) if rank in ranks)
    made = None if by_size else [distributed.new_group(ranks) for ranks in groups][number]
    layer = layer_of(dict(cfg, **(dict(group_size=len(groups[0])) if by_size else dict(process_group=made))))
    if copied:
        layer = copy.deepcopy(layer)
    place = groups[number].index(rank)
    x, grad = (t[2 * place : 2 * place + 2] for t in batch(2 * len(groups[number]), seed=number))
    return trained(layer, x, grad)


def outside_of_the_group(cfg, rank):
    """A rank that is in no group takes its own statistics, as with nn.SyncBatchNorm."""
    layer = layer_of(dict(cfg, process_group=distributed.new_group([0])))
    return trained(layer, *batch(2, seed=rank))


def wrong_size(cfg, rank):
    try:
        layer_of(dict(cfg, group_size=3))(batch(2)[0])
    except ValueError as error:
        return str(error)


def has_another_width(cfg, rank, folder):
    try:
        build(cfg, CHANNELS if rank else 2 * CHANNELS)(torch.randn(2, CHANNELS if rank else 2 * CHANNELS, 3, 3))
    except RuntimeError as error:
        Path(folder, 'error').write_text(str(error))
        raise SystemExit from None  # the other rank is no more


def work(rank, world, folder, tasks, barrier):
    """Run ``tasks``, each in a process group of its own, and write what they return to ``folder``."""
    torch.set_num_threads(1)
    results = []
    for number, (function, arguments, options) in enumerate(tasks):
        distributed.init_process_group(
            'gloo',
            init_method=f'file://{folder}/store{number}',
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=TIMEOUT if function == 'parts' else 100),
        )
        results.append(globals()[function](*arguments, rank=rank, **options))
        torch.save(results, f'{folder}/{rank}.pth')
        barrier.wait(60)  # nobody ends before the others have waited in vain
        distributed.destroy_process_group()
