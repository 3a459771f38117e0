"""Promises 2 and 5 on real processes: ranks with shares of a batch equal one process with the whole batch."""

import pytest
import torch
from torch import multiprocessing, nn

from mmnorm.norms import NORMS

from .cases import CHANNELS, described
from .sync_worker import batch, layer_of, penalized, share_of, trained, work

SYNC = [dict(type=name) for name in NORMS if name.startswith('Sync')] + [
    dict(type='SyncSN', groups=2),
    dict(type='SyncBGN', num_groups=4),
    dict(type='SyncBGN', num_groups=3),
    dict(type='SyncBGN', num_groups=7),
    dict(type='SyncRBN', scale_stat='channel_std'),
]
SHARES = [(2, 2), (3, 1), (4, 0), (0, 3), (1, 1), (0, 0), (2, 1, 1), (1, 0, 3), (0, 0, 4), (0, 0, 0)]
LOCAL = [dict(type=name) for name in NORMS if not name.startswith('Sync') and name != 'FrozenBN']


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """All tasks of one world size in one start of its processes: {(function, arguments): [result of each rank]}."""
    tasks = {2: [], 3: []}
    for shares in SHARES:
        tasks[len(shares)] += [('with_shares', (cfg, shares)) for cfg in SYNC]
        tasks[len(shares)] += [('with_penalty', (cfg, shares)) for cfg in SYNC]
    tasks[2] += [('without_graph', (cfg, (4, 0))) for cfg in SYNC]
    tasks[2] += [
        ('checkpointed', (cfg, shares, reentrant))
        for cfg in SYNC
        for shares in ((3, 1), (4, 0))
        for reentrant in (False, True)
    ]
    tasks[3].append(('of_different_sizes', ()))
    tasks[2].append(('of_groups_without_equal_sizes', ()))
    tasks[2] += [('data_parallel', (cfg, unused)) for cfg in SYNC for unused in (False, True)]
    tasks[2] += [('fully_sharded', (cfg,)) for cfg in SYNC + LOCAL]
    found = {}
    for world, of_world in tasks.items():
        folder = tmp_path_factory.mktemp(f'world{world}')
        multiprocessing.spawn(work, (world, str(folder), of_world), nprocs=world)
        ranks = [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(world)]
        for task, of_ranks in zip(of_world, zip(*ranks)):
            found[repr(task)] = of_ranks
    return found


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('shares', [(3, 1), (4, 0)], ids=str)
@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_activation_checkpointing_takes_all_ranks_along_and_updates_once(results, sync_cfg, shares, reentrant):
    expected = trained(layer_of(alone(sync_cfg)), *batch(sum(shares)))
    for rank, result in enumerate(get(results, 'checkpointed', (sync_cfg, shares, reentrant))):
        part = share_of(shares, rank)
        torch.testing.assert_close(result['y'], expected['y'][part])
        torch.testing.assert_close(result['dx'], expected['dx'][part])
        for key, value in expected['state'].items():
            torch.testing.assert_close(result['state'][key], value, msg=key)


def get(results, *task):
    return results[repr(task)]


def alone(cfg):
    return dict(cfg, type=cfg['type'].removeprefix('Sync'))


@pytest.mark.parametrize('shares', SHARES, ids=str)
@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_shares_of_a_batch_equal_the_whole(results, sync_cfg, shares):
    expected = trained(layer_of(alone(sync_cfg)), *batch(sum(shares)))
    ranks = get(results, 'with_shares', (sync_cfg, shares))
    for rank, result in enumerate(ranks):
        part = share_of(shares, rank)
        torch.testing.assert_close(result['y'], expected['y'][part])
        torch.testing.assert_close(result['dx'], expected['dx'][part])
        for name, value in expected['gradients'].items():
            torch.testing.assert_close(result['gradients'][name], value)
        for key, value in expected['state'].items():
            torch.testing.assert_close(result['state'][key], value)  # EN's batch size, too, is that of all ranks


@pytest.mark.parametrize('shares', [shares for shares in SHARES if sum(shares)], ids=str)
@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_gradient_penalty_of_shares_equals_that_of_the_whole(results, sync_cfg, shares):
    expected = penalized(layer_of(alone(sync_cfg)), *batch(sum(shares)))
    for rank, result in enumerate(get(results, 'with_penalty', (sync_cfg, shares))):
        torch.testing.assert_close(result['dx'], expected['dx'][share_of(shares, rank)])
        for name, value in expected['gradients'].items():
            torch.testing.assert_close(result['gradients'][name], value)


@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_a_rank_whose_empty_share_has_no_graph_keeps_nobody_waiting(results, sync_cfg):
    expected = trained(layer_of(alone(sync_cfg)), *batch(4))
    full, empty = get(results, 'without_graph', (sync_cfg, (4, 0)))
    torch.testing.assert_close(full['dx'], expected['dx'])
    assert empty['collectives'] == full['collectives'] == (1, 1)


@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_one_collective_forward_and_one_backward(results, sync_cfg):
    for result in get(results, 'with_shares', (sync_cfg, (2, 2))):
        assert result['collectives'] == (1, 1)


def test_ranks_with_images_of_different_sizes(results):
    ranks = get(results, 'of_different_sizes', ())
    elements = torch.cat([rank['x'].transpose(0, 1).flatten(1) for rank in ranks], 1)
    for rank in ranks:
        torch.testing.assert_close(rank['mean'], elements.mean(1))
        torch.testing.assert_close(rank['var'], elements.var(1))


def test_groups_that_differ_in_size(results):
    for rank in get(results, 'of_groups_without_equal_sizes', ()):
        torch.testing.assert_close(rank['ours'], rank['expected'])


@pytest.mark.parametrize('find_unused_parameters', [False, True])
@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_ddp_equals_one_process(results, sync_cfg, find_unused_parameters):
    torch.manual_seed(0)
    cfg = alone(sync_cfg)
    model = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), layer_of(cfg), nn.ReLU(), layer_of(cfg)).double()
    x, grad = batch(4)
    for _ in range(2):
        (model(x) * grad).sum().backward()
    for rank in get(results, 'data_parallel', (sync_cfg, find_unused_parameters)):
        for name, p in model.named_parameters():
            torch.testing.assert_close(rank[name], p.grad)


@pytest.mark.parametrize('fsdp_cfg', SYNC + LOCAL, ids=described)
def test_fsdp_trains(results, fsdp_cfg):
    for losses in get(results, 'fully_sharded', (fsdp_cfg,)):
        assert losses[-1] < losses[0] < float('inf')
