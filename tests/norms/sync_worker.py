"""What test_sync.py runs on every rank of a gloo group."""

import copy
from unittest import mock

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mmnorm.core import ranks
from mmnorm.norms import BGN, SyncBGN

from .cases import CHANNELS, build, randomized

SHAPE = (CHANNELS, 4, 3)


def batch(total, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(total, *SHAPE, generator=generator, dtype=torch.float64) * 2 + 1,
        torch.randn(total, *SHAPE, generator=generator, dtype=torch.float64),
    )


def layer_of(cfg):
    torch.manual_seed(1)
    return randomized(build(cfg)).double().train()


def trained(layer, x, grad, requires_grad=True):
    """One forward and backward; the result, the gradients and the layer's state."""
    x = x.clone().requires_grad_(requires_grad)
    y = layer(x)
    (y * grad).sum().backward()
    return dict(
        y=y.detach(),
        dx=x.grad,
        state=copy.deepcopy(layer.state_dict()),
        gradients={name: p.grad for name, p in layer.named_parameters()},
    )


def share_of(shares, rank):
    return slice(sum(shares[:rank]), sum(shares[: rank + 1]))


def checkpointed(cfg, shares, reentrant, rank):
    """As with_shares, computed a second time in the backward pass."""
    layer = layer_of(cfg)
    x, grad = (t[share_of(shares, rank)] for t in batch(sum(shares)))
    x.requires_grad_()
    y = checkpoint(layer, x, use_reentrant=reentrant)
    (y * grad).sum().backward()
    return dict(y=y.detach(), dx=x.grad, state=copy.deepcopy(layer.state_dict()))


def without_graph(cfg, shares, rank):
    """As with_shares, but a share of nothing does not come out of a network."""
    return with_shares(cfg, shares, rank, empty_requires_grad=False)


def with_shares(cfg, shares, rank, empty_requires_grad=True):
    layer = layer_of(cfg)
    with (
        mock.patch.object(ranks, '_all_gather', wraps=ranks._all_gather) as gather,
        mock.patch.object(distributed, 'all_reduce', wraps=distributed.all_reduce) as reduce,
    ):
        x, grad = (t[share_of(shares, rank)] for t in batch(sum(shares)))
        result = trained(layer, x, grad, empty_requires_grad or len(x) > 0)
        result['collectives'] = gather.call_count, reduce.call_count
    for value in result['gradients'].values():
        distributed.all_reduce(value)
    return result


def with_penalty(cfg, shares, rank):
    """The gradients of a gradient penalty."""
    x, grad = (t[share_of(shares, rank)] for t in batch(sum(shares)))
    result = penalized(layer_of(cfg), x, grad)
    for value in result['gradients'].values():
        distributed.all_reduce(value)
    return result


def penalized(layer, x, grad):
    """Backward through the squared gradient of an input."""
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((layer(x) * grad).sum(), x, create_graph=True)
    found.square().sum().backward()
    gradients = {name: p.new_zeros(p.shape) if p.grad is None else p.grad for name, p in layer.named_parameters()}
    return dict(dx=x.grad, gradients=gradients)


def of_different_sizes(rank):
    """Ranks with images of different sizes: statistics are weighted by elements."""
    layer = build(dict(type='SyncSN', momentum=1.0)).double()
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(rank + 1, CHANNELS, 3 + rank, 4, generator=generator, dtype=torch.float64) + rank
    layer(x)
    return dict(x=x, mean=layer.running_mean, var=layer.running_var)


def of_groups_without_equal_sizes(rank):
    """BGN's general way, whose groups differ in size."""
    layer, x = SyncBGN(CHANNELS, num_groups=7, momentum=1.0).double(), batch(4)[0][2 * rank : 2 * rank + 2]
    whole = BGN(CHANNELS, num_groups=7, momentum=1.0).double()
    whole(batch(4)[0])
    layer(x)
    return dict(ours=layer.running_var, expected=whole.running_var)


def data_parallel(cfg, find_unused_parameters, rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), layer_of(cfg), nn.ReLU(), layer_of(cfg)).double()
    model = DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)
    x, grad = (t[2 * rank : 2 * rank + 2] for t in batch(4))
    for _ in range(2):
        # DDP averages over ranks what one process sums
        (model(x) * grad).sum().mul(distributed.get_world_size()).backward()
    return {name: p.grad for name, p in model.module.named_parameters()}


def fully_sharded(cfg, rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), build(cfg), nn.ReLU(), nn.Conv2d(CHANNELS, 1, 1))
    torch.manual_seed(0)
    fully_shard(model, mesh=distributed.device_mesh.init_device_mesh('cpu', (distributed.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = model(batch(4)[0][2 * rank : 2 * rank + 2].float()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def work(rank, world, folder, tasks):
    """Run ``tasks``, names of this module's functions with arguments, and write what they return to ``folder``."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
    results = []
    for function, arguments in tasks:
        results.append(globals()[function](*arguments, rank=rank))
    torch.save(results, f'{folder}/{rank}.pth')
    distributed.destroy_process_group()
