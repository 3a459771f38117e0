"""Ranks that part ways learn of it, with layer, step and rank; and Sync norms over some of the ranks."""

import copy

import pytest
import torch
from torch import distributed, multiprocessing

from mmnorm.norms import IBN, NORMS, SYNC_TWINS, SyncSN, checks

from .cases import CHANNELS, described
from .ranks_worker import TIMEOUT, WAYS, work
from .sync_worker import batch, layer_of, trained
from .test_sync import SYNC, alone

NAMES = [dict(type=name) for name in NORMS if name.startswith('Sync')]
PAIRS, CROSSED = ([0, 1], [2, 3]), ([0, 2], [1, 3])
# what the others are told, of the ways that end with a message at once; the rest ends when the time is over
TOLD = dict(
    skips_a_layer='{name} last (8 channels) (rank 1)|{name} first (8 channels) (rank 0)',
    has_another_backward_pass='another rank is in the backward pass of another layer',
    skips_a_step='this layer at step 3 (rank 1)|this layer at step 2 (rank 0)',
    goes_on_after_an_exception='first (8 channels) at step 2 (rank 1)|last (8 channels) at step 1 (rank 0)',
    has_another_type='this layer with statistics in float64 (rank 1)|this layer with statistics in float32 (rank 0)',
)


def run(tasks, world, folder):
    """What tasks return on each rank: {task: [result of each rank]}."""
    barrier = multiprocessing.get_context('spawn').Barrier(world)
    ranks = multiprocessing.spawn(work, (world, str(folder), tasks, barrier), nprocs=world, join=False)
    while not ranks.join(grace_period=30):  # one that fails leaves the others time to tell of it
        pass
    found = [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(world)]
    return {repr(task): of_ranks for task, of_ranks in zip(tasks, zip(*found))}


def task(function, *arguments, **options):
    return function, arguments, options


PARTINGS = [task('parts', name, cfg) for name in WAYS for cfg in NAMES]
# the messages and the timeout of a group are those of all ranks
PARTINGS += [task('parts', name, NAMES[0], group_size=2) for name in ('skips_a_layer', 'skips_the_last_layer')]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    tasks = PARTINGS + [task('evaluates_alone', cfg) for cfg in NAMES]
    tasks += [task('partly_compiled', cfg, compiled=ranks) for cfg in SYNC for ranks in ([0, 1], [0])]
    tasks += [task(name, cfg) for name in ('outside_of_the_group', 'wrong_size') for cfg in NAMES]
    return run(tasks, 2, tmp_path_factory.mktemp('two'))


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    tasks = [task('over_some', cfg, groups=PAIRS, by_size=True, copied=False) for cfg in SYNC]
    tasks += [task('over_some', cfg, groups=CROSSED, by_size=False, copied=copied) for cfg in SYNC for copied in (0, 1)]
    return run(tasks, 4, tmp_path_factory.mktemp('four'))


@pytest.mark.parametrize('parting', PARTINGS, ids=str)
def test_ranks_that_part_ways_are_told_where_they_are(two, parting):
    of_ranks, (name, sync_cfg) = two[repr(parting)], parting[1]
    kind = sync_cfg['type']
    for rank, result in enumerate(of_ranks):
        if rank and name == 'has_ended':
            continue
        error = result['error']
        assert error.startswith(
            tuple(f'{kind} {layer} ({CHANNELS} channels) on rank {rank}, ' for layer in ('first', 'last'))
        )
        assert 'Every rank must run every Sync layer equally often and in the same order' in error
        assert ' pass ' in error.partition(':')[0] and 'at step ' in error.partition(':')[0]
        if name in TOLD:
            assert result['seconds'] < TIMEOUT
            expected = TOLD[name].format(name=kind).split('|')
            assert any(text in error for text in expected), error
        else:
            assert 'the ranks did not meet here' in error and result['seconds'] < 5 * TIMEOUT


def test_a_rank_of_another_width_is_told_of_by_the_others(tmp_path):
    """gloo ends the rank whose message is the shorter one."""
    with pytest.raises(multiprocessing.ProcessExitedException):
        run([task('has_another_width', NAMES[0], folder=str(tmp_path))], 2, tmp_path)
    error = (tmp_path / 'error').read_text()
    assert error.startswith(f'SyncSN ({2 * CHANNELS} channels) on rank 0, forward pass 1')
    assert 'a layer that is unknown here (rank 1)' in error or 'the ranks did not meet here' in error


@pytest.mark.parametrize('sync_cfg', NAMES, ids=described)
def test_evaluation_waits_for_no_other_rank(two, sync_cfg):
    for y in two[repr(task('evaluates_alone', sync_cfg))]:
        assert y.isfinite().all()


@pytest.mark.parametrize('ranks', [[0, 1], [0]], ids=str)
@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_compiled_and_other_ranks_share_statistics(two, sync_cfg, ranks):
    expected = trained(layer_of(alone(sync_cfg)), *batch(4))
    for rank, result in enumerate(two[repr(task('partly_compiled', sync_cfg, compiled=ranks))]):
        part = slice(2 * rank, 2 * rank + 2)
        torch.testing.assert_close(result['y'], expected['y'][part])
        torch.testing.assert_close(result['dx'], expected['dx'][part])
        torch.testing.assert_close(result['mean'], expected['state']['running_mean'])


@pytest.mark.parametrize(
    'options',
    [
        dict(groups=PAIRS, by_size=True, copied=False),
        dict(groups=CROSSED, by_size=False, copied=0),
        dict(groups=CROSSED, by_size=False, copied=1),
    ],
    ids=['group_size', 'process_group', 'copied'],
)
@pytest.mark.parametrize('sync_cfg', SYNC, ids=described)
def test_a_group_of_ranks_equals_one_process_with_its_batch(four, sync_cfg, options):
    of_ranks = four[repr(task('over_some', sync_cfg, **options))]
    for number, ranks in enumerate(options['groups']):
        expected = trained(layer_of(alone(sync_cfg)), *batch(4, seed=number))
        for place, rank in enumerate(ranks):
            part = slice(2 * place, 2 * place + 2)
            torch.testing.assert_close(of_ranks[rank]['y'], expected['y'][part])
            torch.testing.assert_close(of_ranks[rank]['dx'], expected['dx'][part])
            for key, value in expected['state'].items():
                torch.testing.assert_close(of_ranks[rank]['state'][key], value)


@pytest.mark.parametrize('sync_cfg', NAMES, ids=described)
def test_a_rank_outside_of_the_group_takes_its_own_statistics(two, sync_cfg):
    for rank, result in enumerate(two[repr(task('outside_of_the_group', sync_cfg))]):
        expected = trained(layer_of(alone(sync_cfg)), *batch(2, seed=rank))
        torch.testing.assert_close(result['y'], expected['y'])


@pytest.mark.parametrize('sync_cfg', NAMES, ids=described)
def test_a_group_size_that_does_not_fit_names_the_layer(two, sync_cfg):
    for error in two[repr(task('wrong_size', sync_cfg))]:
        assert error == f'{sync_cfg["type"]}({CHANNELS}): group_size=3 does not divide the 2 ranks'


@pytest.mark.parametrize('twin', SYNC_TWINS.values())
def test_which_ranks_is_checked(twin):
    with pytest.raises(ValueError, match=r'\(8\): process_group and group_size both'):
        twin(8, process_group=distributed.ProcessGroup(0, 1), group_size=2)
    with pytest.raises(TypeError, match=r"\(8\): process_group must be a group .* use group_size.* got 'nodes'"):
        twin(8, process_group='nodes')
    for size, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ('2', TypeError)):
        with pytest.raises(error, match=rf'{twin.__name__}\(8\): group_size must be a positive integer'):
            twin(8, group_size=size)
    assert twin(8, group=(group := distributed.ProcessGroup(0, 1))).process_group is group  # by mmcv's name


@pytest.mark.parametrize('norm', [*SYNC_TWINS, IBN])
def test_norms_of_one_process_take_no_group(norm, monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())
    with pytest.raises(TypeError, match=rf'{norm.__name__}\(8\) takes the statistics of its own process'):
        norm(8, group_size=2)
    # where only the type of a norm_cfg was changed
    with pytest.warns(UserWarning, match=f'{norm.__name__} has no process_group, which is of SyncBN: it has no effect'):
        assert norm(8, process_group=distributed.ProcessGroup(0, 1)).process_group is None


def test_copies_share_the_group_and_its_size_is_pickled():
    group = distributed.ProcessGroup(0, 1)
    layer = copy.deepcopy(torch.nn.Sequential(SyncSN(8, process_group=group)))[0]
    assert layer.process_group is group
    assert copy.copy(layer).process_group is group
    torch.testing.assert_close(layer.weight, SyncSN(8).weight)
