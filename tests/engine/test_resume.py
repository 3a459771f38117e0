"""A resumed training is the uninterrupted one to the bit, or says what differs."""

import itertools
import json
import multiprocessing
import os
import random
import time

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler, GroupMultiSourceSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import distributed, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler

from mmnorm import engine
from mmnorm.engine import Runner, read_checkpoint
from mmnorm.engine.positions import Batches, EndlessLoader
from mmnorm.norms import BRN, EN
from mmnorm.openmmlab.loading import ResumeError
from tests.checkpoints import COMPARED, equal
from tests.processes import IMPORTED, free_port


class Images(Dataset):
    """Small noise, drawn anew each time from all random states."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def get_data_info(self, index):
        return dict(width=1 + index % 3, height=2)

    def __getitem__(self, index):
        return dict(inputs=torch.rand(3, 4, 4) + random.random() + np.random.rand() + index)


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), BRN(4, warmup=4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 2, 1), EN(2, mode='online')
        )

    def forward(self, inputs, mode='tensor'):
        out = self.layers(inputs) * random.random() * np.random.rand()
        return dict(loss=out.sin().square().mean()) if mode == 'loss' else [out.mean()]


class Metric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(score=float(sum(results)) + random.random())


class Killed(Exception):
    """What a test ends a training with."""


class Kill(Hook):
    """End a training at the start of an iteration, or in the evaluation after so many."""

    def __init__(self, iteration=None, evaluation=None):
        self.iteration, self.evaluation = iteration, evaluation

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Killed

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.evaluation:
            raise Killed


names = iter(range(10**6))
LOOPS = dict(epoch=dict(by_epoch=True, max_epochs=3), iter=dict(by_epoch=False, max_iters=14, val_interval=5))


def build(work_dir, loop='epoch', loader=None, by_epoch=None, every=1, seed=3, batch_size=2, hooks=(), **kwargs):
    by_epoch = loop == 'epoch' if by_epoch is None else by_epoch
    dataset = Images(10)
    if loader is None:
        sampler = DefaultSampler(dataset, seed=seed) if loop == 'epoch' else InfiniteSampler(dataset, seed=seed)
        loader = DataLoader(dataset, batch_size, sampler=sampler)
    defaults = dict(
        model=Model(),
        work_dir=str(work_dir),
        experiment_name=f'resume {next(names)}',
        train_dataloader=loader,
        train_cfg=LOOPS[loop],
        val_dataloader=DataLoader(Images(2)),
        val_cfg=dict(),
        val_evaluator=dict(type=Metric),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), accumulative_counts=2),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7),
            dict(type='MultiStepLR', by_epoch=loop == 'epoch', milestones=[2, 3]),
        ],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=every, by_epoch=by_epoch)),
        custom_hooks=[
            dict(type='EMAHook', momentum=0.1),
            dict(type='EarlyStoppingHook', monitor='score', rule='less', patience=50),
        ],
        randomness=dict(seed=seed),
        log_level='WARNING',
        resume=True,
    )
    runner = Runner(**defaults | kwargs)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def train(runner):
    """Train, and end the loader's workers then: collected as garbage they would take 5 seconds each."""
    try:
        runner.train()
    finally:
        runner.train_dataloader._iterator = runner.train_loop.dataloader_iterator = None


def interrupt(work_dir, *args, kill, **kwargs):
    try:
        train(build(work_dir, *args, hooks=[kill], **kwargs))
    except Killed:
        return
    pytest.fail('it was not killed')


def last(work_dir):
    """All of the last checkpoint of a training that says how it ended; its logs have times."""
    path = max(work_dir.glob('[ei]*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    checkpoint = read_checkpoint(path)
    return {key: checkpoint[key] for key in COMPARED}


def assert_equal(one, other):
    first, second = last(one), last(other)
    assert not [key for key in first if not equal(first[key], second[key])]


def loaders(seed, workers):
    images = Images(10)
    two = ConcatDataset([Images(6), Images(4)])
    grouped = AspectRatioBatchSampler(DefaultSampler(images, seed=seed), 2)
    endless = GroupMultiSourceSampler(two, 3, [2, 1], seed=seed)
    return dict(
        plain=lambda: DataLoader(images, 2, shuffle=True, num_workers=workers),
        grouped=lambda: DataLoader(images, batch_sampler=grouped, num_workers=workers, persistent_workers=workers > 0),
        endless=lambda: DataLoader(two, 3, sampler=endless, num_workers=workers),
    )


@pytest.mark.parametrize(
    'loop, kind, workers, by_epoch, every, kill',
    [
        ('epoch', 'plain', 0, True, 1, Kill(12)),
        ('epoch', 'grouped', 2, False, 2, Kill(8)),
        ('epoch', 'plain', 0, False, 5, Kill(12)),  # a file of the last iteration, and none of the end of its epoch
        ('iter', 'plain', 0, False, 3, Kill(8)),
        ('iter', 'endless', 2, False, 3, Kill(8)),
        ('iter', 'grouped', 0, False, 5, Kill(11)),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, loop, kind, workers, by_epoch, every, kill):
    def options():
        return dict(loop=loop, loader=loaders(3, workers)[kind](), by_epoch=by_epoch, every=every)

    train(build(tmp_path / 'whole', **options()))
    interrupt(tmp_path / 'parts', kill=kill, **options())
    train(build(tmp_path / 'parts', **options()))
    assert_equal(tmp_path / 'whole', tmp_path / 'parts')


def test_workers_do_not_change_a_training(tmp_path):
    for workers in (0, 2):
        train(build(tmp_path / str(workers), loader=loaders(3, workers)['plain']()))
    assert_equal(tmp_path / '0', tmp_path / '2')


class Evaluations(Hook):
    """What evaluations gave, and when."""

    priority = 'LOWEST'

    def __init__(self):
        self.found = []

    def after_val_epoch(self, runner, metrics=None):
        self.found.append((runner.iter, metrics))


@pytest.mark.parametrize('loop, end', [('epoch', 15), ('iter', 14)])
def test_an_evaluation_that_was_due_is_done(tmp_path, loop, end):
    whole, parts, again = Evaluations(), Evaluations(), Evaluations()
    build(tmp_path / 'whole', loop, hooks=[whole]).train()
    interrupt(tmp_path / 'parts', loop, kill=Kill(evaluation=end))
    build(tmp_path / 'parts', loop, hooks=[parts]).train()
    assert parts.found == whole.found[-1:] and parts.found[0][0] == end
    assert_equal(tmp_path / 'whole', tmp_path / 'parts')
    finished = dict(iterations=end, finished='today')  # as RunRecordHook writes
    for record in json.dumps(finished), '{', json.dumps(finished | dict(finished=None)):
        (tmp_path / 'parts/run.json').write_text(record)
        build(tmp_path / 'parts', loop, hooks=[again]).train()
    assert again.found == 2 * parts.found


def test_an_evaluation_whose_outcome_is_in_the_file_is_not_done_again(tmp_path):
    options = dict(
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='score', rule='less')),
        custom_hooks=[
            dict(type='EMAHook'),
            # wants more than a training gains
            dict(type='EarlyStoppingHook', monitor='score', rule='less', min_delta=1e6, patience=2),
        ],
    )
    whole, parts = Evaluations(), Evaluations()
    build(tmp_path / 'whole', hooks=[whole], **options).train()
    (best,) = (tmp_path / 'whole').glob('best_*.pth')
    kill = Kill(iteration=5 * int(best.stem.rpartition('_')[2]) + 1)
    interrupt(tmp_path / 'parts', kill=kill, **options)
    runner = build(tmp_path / 'parts', hooks=[parts], **options)
    runner.train()
    assert parts.found == [found for found in whole.found if found[0] >= kill.iteration]
    assert_equal(tmp_path / 'whole', tmp_path / 'parts')


def change(work_dir, **values):
    """Change the entry of the last checkpoint, or remove it."""
    path = max(work_dir.glob('[ei]*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    checkpoint = torch.load(path, weights_only=False)
    if values:
        checkpoint['training'].update(values)
    else:
        del checkpoint['training']
    torch.save(checkpoint, path)


@pytest.mark.parametrize('old', [False, True])
def test_another_batch_goes_on_at_the_same_epoch_of_its_own_schedule(tmp_path, capsys, old):
    build(tmp_path / 'whole', batch_size=5).train()
    interrupt(tmp_path / 'parts', kill=Kill(12))
    if old:
        change(tmp_path / 'parts')
    capsys.readouterr()
    runner = build(tmp_path / 'parts', batch_size=5)
    runner.train()
    said = capsys.readouterr().out
    assert 'it goes on at the same epoch, 2, with iteration 4 for 10 and the learning rate 0.' in said
    assert 'not scaled with the batch' in said
    assert ('this training of 1 x 5 images a step and 2 steps an epoch' in said) and ('Not restored' in said) == old
    whole, parts = last(tmp_path / 'whole'), last(tmp_path / 'parts')
    assert runner.iter == 6 and equal(whole['param_schedulers'], parts['param_schedulers'])
    assert equal(whole['optimizer']['param_groups'], parts['optimizer']['param_groups'])


@pytest.mark.parametrize(
    'loop, options, reason',
    [
        ('iter', {}, 'of an iteration-based training count steps'),
        ('epoch', dict(by_epoch=False), 'its checkpoints are numbered by iterations'),
        (
            'epoch',
            dict(param_scheduler=[dict(type='ReduceOnPlateauLR', monitor='score', rule='less')]),
            'ReduceOnPlateauLR has set learning rates from evaluations',
        ),
    ],
)
def test_another_batch_without_such_a_place_is_refused(tmp_path, loop, options, reason):
    interrupt(tmp_path, loop, kill=Kill(9), **options)
    runner = build(tmp_path, loop, batch_size=1, **options)
    with pytest.raises(ResumeError, match=rf'is of 1 x 2 images.* of 1 x 1 .*{reason}.*batch_size=2\).*load_from'):
        runner.train()


def test_the_same_batch_in_another_division_stays_where_it_is(tmp_path, capsys):
    interrupt(tmp_path, kill=Kill(12))
    change(tmp_path, world_size=2, batch_size=1)
    runner = build(tmp_path)
    runner.train()
    assert runner.iter == 15
    said = capsys.readouterr().out
    assert 'of 2 x 1 images a step and 5 steps an epoch, this training of 1 x 2' in said
    assert 'as many images a step, so position and schedule stay' in said


@pytest.mark.parametrize('loop', LOOPS)
def test_files_without_our_entry_are_resumed_by_their_counts(tmp_path, capsys, loop):
    def order(work_dir, **kwargs):
        seen = []
        record = Hook()
        record.after_train_iter = lambda runner, batch_idx, data_batch=None, outputs=None: seen.append(
            data_batch['inputs'].mean(dim=(1, 2, 3)).floor().tolist()
        )
        return seen, build(work_dir, loop, hooks=[record], **kwargs)

    seen, runner = order(tmp_path / 'whole', **plain_data(loop))
    runner.train()
    interrupt(tmp_path / 'parts', loop, kill=Kill(12), **plain_data(loop))
    change(tmp_path / 'parts')
    again, runner = order(tmp_path / 'parts', **plain_data(loop))
    runner.train()
    assert again == seen[-len(again) :] and 0 < len(again) < len(seen)
    assert 'Not restored: random states' in capsys.readouterr().out


class Plain(Images):
    """Images that are their numbers."""

    def __getitem__(self, index):
        return dict(inputs=torch.full((3, 4, 4), float(index)))


def plain_data(loop):
    sampler = dict(epoch=DefaultSampler, iter=InfiniteSampler)[loop](Plain(10), seed=3)
    return dict(loader=DataLoader(Plain(10), 2, sampler=sampler))


def told(tmp_path, capsys, before, after):
    """What is said when a training in the middle of an epoch goes on with another loader."""
    interrupt(tmp_path, loader=before, by_epoch=False, kill=Kill(7))
    capsys.readouterr()
    build(tmp_path, loader=after, by_epoch=False).train()
    return capsys.readouterr().out


def test_an_order_that_cannot_be_had_again_is_told(tmp_path, capsys):
    def loader(size, kind=DefaultSampler, **kwargs):
        images = Images(size)
        return DataLoader(images, 2, sampler=kind(images, **kwargs))

    kept = RandomSampler, dict(generator=torch.Generator())
    assert 'sampler' not in told(tmp_path / 'same', capsys, loader(10), loader(10))
    # another seed of the loader is that of the checkpoint
    assert 'sampler' not in told(tmp_path / 'seed', capsys, loader(10, seed=3), loader(10, seed=4))
    said = told(tmp_path / 'data', capsys, loader(10, seed=3), loader(9, seed=3))
    assert 'the sampler DefaultSampler does not give the 2 batches again' in said
    said = told(tmp_path / 'kept', capsys, loader(10, kept[0], **kept[1]), loader(10, kept[0], **kept[1]))
    assert 'the sampler RandomSampler keeps a generator of random numbers, whose state is not restored' in said


class Stream(IterableDataset):
    def __len__(self):
        return 100

    def __iter__(self):
        return (Plain(100)[index] for index in range(100))


def test_data_without_positions_are_told(tmp_path, capsys):
    loaders = [DataLoader(Stream(), 2) for _ in range(2)]
    interrupt(tmp_path, 'iter', loader=loaders[0], kill=Kill(7))
    build(tmp_path, 'iter', loader=loaders[1]).train()
    assert 'Stream has no batch sampler: its order, and what it draws, are not restored' in capsys.readouterr().out


SOAKED = [('epoch', 'grouped', True, 2), ('epoch', 'plain', False, 7), ('iter', 'endless', False, 7)]


def soak(work_dir, case, rank, ranks, port):
    """What a process of the soak does: train to the end, as a rank of several where there are more."""
    engine.die_with_parent()
    loop, kind, by_epoch, every = case
    several = {}
    if ranks > 1:
        os.environ.update(WORLD_SIZE=str(ranks), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1')
        distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', world_size=ranks, rank=rank)
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
        several = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
    length = dict(epoch=dict(max_epochs=60, val_interval=7), iter=dict(max_iters=300, val_interval=30))[loop]
    # with workers, which a kill must not leave behind
    options = dict(loader=loaders(3, 1)[kind](), by_epoch=by_epoch, every=every)
    train(build(work_dir, loop, train_cfg=LOOPS[loop] | length, **options, **several))


def start(work_dir, case, ranks):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(IMPORTED)
    port = free_port()
    processes = [context.Process(target=soak, args=(work_dir, case, rank, ranks, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('ranks', [1, 2])
def test_kills_at_25_random_moments(tmp_path, ranks):
    seed = int(os.environ.get('SOAK_SEED') or time.time())
    print(f'SOAK_SEED={seed} gives these moments again')
    rng, kills, compared = random.Random(seed), 0, 0
    for case in itertools.cycle(SOAKED):
        whole, parts = tmp_path / f'whole_{case[:2]}', tmp_path / f'parts_{compared}'
        if not whole.exists():
            begun = time.monotonic()
            assert all(process.join() is None and process.exitcode == 0 for process in start(whole, case, ranks))
            lasted = time.monotonic() - begun
        done = False
        while not done:
            processes = start(parts, case, ranks)
            victim = rng.choice(processes)
            victim.join(rng.uniform(0, lasted) if kills < 25 else None)
            done = victim.exitcode == 0
            if not done:
                kills += 1
                victim.kill()
                time.sleep(rng.uniform(0, 0.5))  # in which a rank alone may do something
            for process in processes:
                if not done:
                    process.kill()
                process.join()
        assert not [process.exitcode for process in processes if process.exitcode]
        assert_equal(whole, parts)
        compared += 1
        if kills >= 25:
            break
    print(f'{kills} kills of {ranks} process(es), {compared} trainings equal to those that were not killed')


def test_a_loop_that_throws_batches_away_gets_none_of_them():
    images = Plain(6)
    loader = DataLoader(images, 2, sampler=DefaultSampler(images, shuffle=False, seed=0))
    batches = Batches.of(loader, 0, 0, pytest.fail)
    batches.start_from(0, 2, None)
    endless = EndlessLoader(loader, thrown_away=2)
    assert [next(endless) for _ in range(2)] == [None, None]
    assert [next(endless)['inputs'][:, 0, 0, 0].tolist() for _ in range(2)] == [[4, 5], [0, 1]]
    assert batches.turn == 1
