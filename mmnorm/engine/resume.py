"""What mmengine's checkpoints lack for a resumed training to be the uninterrupted one, or what differs.

Random states are not among it: see :mod:`.positions`. A checkpoint gets an entry ``training``: the batch and the number
of processes, and of each rank its position in the data and what its modules and hooks hold outside their state dicts.
"""

import copy
import math
import warnings
from operator import attrgetter
from pathlib import Path

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object, broadcast_object_list, get_world_size
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmnorm.files import read_json
from mmnorm.openmmlab.hooks import saves_checkpoint
from mmnorm.openmmlab.loading import ResumeError
from mmnorm.statistics import unwrapped

from .positions import Batches, EndlessLoader

KEY = 'training'
# What classes hold outside their state dicts while they train, by the name of the class: attributes, their parts dotted
_HELD = {
    'RunningStatistics': ('averaged_from',),
    'EN': ('batches_seen',),
    'BatchSyncRandomResize': ('_input_size',),
    'DynamicRoIHead': (
        'iou_history',
        'beta_history',
        'bbox_assigner.pos_iou_thr',
        'bbox_assigner.neg_iou_thr',
        'bbox_assigner.min_pos_iou',
        'bbox_head.loss_bbox.beta',
    ),
    'EarlyStoppingHook': ('wait_count', 'best_score'),
}
_GEOMETRY = ('world_size', 'batch_size', 'batches')


class KeepStateHook(Hook):
    """Write the entry of a checkpoint, and go on from it when a training is resumed."""

    priority = 85  # after all that changes a training's state, before CheckpointHook

    def __init__(self):
        self.resumed = None  # the entry that the training goes on from
        self._gathered = None, []
        self._metrics = None  # of the evaluation that is about to end

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._gather(runner, by_epoch=False)

    def after_train_epoch(self, runner):
        self._gather(runner, by_epoch=True)

    def _gather(self, runner, by_epoch):
        # here and not where rank 0 writes the file, which a user's hook may have it do alone
        if any(saves_checkpoint(hook, runner, by_epoch) for hook in runner.hooks):
            self._gathered = runner.iter + (not by_epoch), all_gather_object(_state_of_rank(runner))

    def after_val_epoch(self, runner, metrics=None):
        self._metrics = {name: _plain(value) for name, value in (metrics or {}).items()}

    def after_val(self, runner):
        self._metrics = None

    def before_save_checkpoint(self, runner, checkpoint):
        iterations, states = self._gathered
        if iterations != checkpoint['meta']['iter']:  # not by a CheckpointHook
            states = [_state_of_rank(runner)]
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            for state in states:  # the end of an epoch is the start of the next one
                if state.get('turn') != checkpoint['meta']['epoch']:
                    state.update(turn=checkpoint['meta']['epoch'], taken=0, digest=0)
        own = states[0]['buffers']
        for state in states[1:]:  # most are the same on all ranks
            state['buffers'] = {
                key: buffer for key, buffer in state['buffers'].items() if not torch.equal(buffer, own[key])
            }
        checkpoint[KEY] = dict(
            zip(_GEOMETRY, geometry_of(runner)),
            evaluated=self._metrics,  # not None where CheckpointHook writes the file again, as that of the best
            ranks=[dict(states[0], buffers={}), *states[1:]],
        )

    def after_load_checkpoint(self, runner, checkpoint):
        entry = checkpoint.get(KEY) if runner._resume else None
        whole = isinstance(entry, dict) and entry.keys() >= {*_GEOMETRY, 'evaluated', 'ranks'}
        self.resumed = entry if whole and entry['ranks'] else None

    def before_train(self, runner):
        loop = runner.train_loop
        batches = Batches.of(loop.dataloader, runner.seed, runner.rank, runner.logger.warning)
        if runner._resume and runner.iter:
            self._restore(runner, batches)
        if isinstance(loop, IterBasedTrainLoop) and batches is not None:
            advances = hasattr(type(loop.dataloader_iterator), 'skip_iter')
            loop.dataloader_iterator = EndlessLoader(loop.dataloader, thrown_away=0 if advances else runner.iter)

    def _restore(self, runner, batches):
        say = runner.logger.warning
        if self.resumed is None:
            say(
                'the checkpoint was written by mmengine or an earlier version of mmnorm. Not restored: random states, '
                'the order of the data of samplers without a seed, and what modules and hooks hold outside their '
                'state dicts; so this training is not the uninterrupted one to the bit'
            )
            state = _position_by_count(runner, batches)
        else:
            states = self.resumed['ranks']
            alone = len(states) != runner.world_size
            if alone and self.resumed['world_size'] == runner.world_size:
                say('the checkpoint has the state of the first rank alone: the others go on from that')
            state = states[0 if alone else runner.rank]
            _load_state_of_rank(runner, state, states[0])
        dataset = runner.train_loop.dataloader.dataset
        if batches is None or 'turn' not in state:
            say(f'{type(dataset).__name__} has no batch sampler: its order, and what it draws, are not restored')
            return
        for sampler in _samplers(batches):
            if isinstance(state.get('sampler_seed'), int) and hasattr(sampler, 'seed'):
                sampler.seed = state['sampler_seed']
            if _has_generator(sampler):
                say(
                    f'the sampler {type(sampler).__name__} keeps a generator of random numbers, whose state is not '
                    'restored: the order of the data is another than that of the first run'
                )
        caching = sorted({type(step).__name__ for step in _steps(dataset) if hasattr(step, 'results_cache')})
        if caching:
            say(f'{", ".join(caching)} mix in images of earlier batches, of which none are restored')
        batches.start_from(state['turn'], state['taken'], state.get('digest'))


class EvaluateDueHook(Hook):
    """Evaluate what a training is resumed from where the uninterrupted one did: the file is from before that.

    Also if it was evaluated, unless the training is over: what hooks and schedulers learned then is in no file.
    """

    priority = 'LOWEST'

    def before_run(self, runner):
        found = [_finished_at(runner.work_dir) if runner.rank == 0 else None]
        broadcast_object_list(found)  # the folder may be another on other machines
        self._finished_at = found[0]

    def before_train(self, runner):
        if not (runner._resume and runner.iter and runner.val_loop is not None):
            return
        entry = next(hook.resumed for hook in runner.hooks if isinstance(hook, KeepStateHook))
        if entry and entry['evaluated'] is not None:
            for hook in runner.hooks:
                if isinstance(hook, EarlyStoppingHook):  # which was to learn of it after CheckpointHook
                    hook.after_val_epoch(runner, entry['evaluated'])
            return
        if not _evaluates_here(runner.train_loop):
            return
        if self._finished_at == runner.iter == runner.max_iters:
            runner.logger.info('the training was finished and evaluated before')
            return
        runner.logger.info('evaluating what the training is resumed from, as was due after its checkpoint')
        runner.val_loop.run()


def _finished_at(work_dir):
    """After how many iterations the last training of a folder ended with its evaluation (int); None if it did not."""
    try:
        record = dict(read_json(Path(work_dir, 'run.json')))
    except (OSError, TypeError, ValueError):  # none, or damaged
        return None
    return record.get('iterations') if record.get('finished') else None


def _evaluates_here(loop):
    """Whether a training loop evaluates where it stands."""
    if isinstance(loop, EpochBasedTrainLoop):
        if loop.iter != loop.epoch * len(loop.dataloader):
            return False
        number, last = loop.epoch, loop.max_epochs
    elif isinstance(loop, IterBasedTrainLoop):
        number, last = loop.iter, loop.max_iters
    else:
        return False
    loop._decide_current_val_interval()
    return number >= loop.val_begin and (number % loop.val_interval == 0 or number == last)


def _state_of_rank(runner):
    batches = getattr(runner.train_loop.dataloader, 'batch_sampler', None)
    state = dict(batches.position) if isinstance(batches, Batches) else {}
    seeds = [sampler.seed for sampler in _samplers(batches) if hasattr(sampler, 'seed')]
    wrapper, network = runner.optim_wrapper, unwrapped(runner.model)
    gradients = {}
    if isinstance(wrapper, OptimWrapper) and not wrapper.should_update():  # between two steps of the optimizer
        gradients = {name: p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}
    return state | dict(
        sampler_seed=seeds[0] if seeds else None,
        buffers={name: buffer.cpu() for name, buffer in _buffers(runner).items()},
        held={name: _plain(attrgetter(path)(owner)) for name, owner, path in _holders(runner)},
        gradients=gradients,
    )


def _load_state_of_rank(runner, state, first):
    buffers = _buffers(runner)
    for name, buffer in state['buffers'].items():
        if name in buffers:
            buffers[name].data.copy_(buffer)
    held = state['held'] or first['held']
    for name, owner, path in _holders(runner):
        if name in held:
            *parts, last = path.split('.')
            setattr(attrgetter('.'.join(parts))(owner) if parts else owner, last, held[name])
    for name, parameter in unwrapped(runner.model).named_parameters():
        if name in state['gradients']:
            parameter.grad = state['gradients'][name].to(parameter)
    if state['gradients'] and hasattr(runner.model, 'require_forward_param_sync'):
        runner.model.require_forward_param_sync = False  # DDP that broadcasts buffers does so after a synced step alone


def _buffers(runner):
    found = dict(unwrapped(runner.model).named_buffers())
    for number, hook in enumerate(hook for hook in runner.hooks if isinstance(hook, EMAHook)):
        found.update((f'EMAHook {number}: {name}', buffer) for name, buffer in hook.ema_model.named_buffers())
    return found


def _holders(runner):
    """What holds states outside state dicts: a name for the file, the owner, and the path of the attribute."""
    owners = [*unwrapped(runner.model).named_modules(), *((type(hook).__name__, hook) for hook in runner.hooks)]
    return [
        (f'{name}:{path}', owner, path)
        for name, owner in owners
        for kind in type(owner).__mro__
        for path in _HELD.get(kind.__name__, ())
    ]


def _plain(value):
    """A value without numpy's numbers, which a reader that runs nothing may refuse."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value.item() if hasattr(value, 'item') else value


def _samplers(batches):
    found = [batches, getattr(batches, 'sampler', None)]
    if isinstance(batches, Batches):
        found[0] = batches.batch_sampler
    return [sampler for sampler in found if sampler is not None]


def _has_generator(sampler):
    values = [part for value in vars(sampler).values() for part in (value if isinstance(value, list) else [value])]
    return any(isinstance(getattr(value, 'generator', value), torch.Generator) for value in values)


def _steps(dataset):
    """The transforms of a data set's pipeline, also of the data sets that it is made of."""
    for inner in [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())]:
        if inner is not None:
            yield from _steps(inner)
    pipeline = getattr(dataset, 'pipeline', ())
    yield from getattr(pipeline, 'transforms', pipeline if isinstance(pipeline, (list, tuple)) else ())


def _position_by_count(runner, batches):
    """The position of a file that does not tell it."""
    if batches is None:
        return {}
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        taken = runner.iter - runner.epoch * len(batches)
        return dict(turn=runner.epoch, taken=taken if 0 <= taken <= len(batches) else 0)
    if any(isinstance(sampler, DefaultSampler) for sampler in _samplers(batches)):
        turn, taken = divmod(runner.iter, len(batches))
        return dict(turn=turn, taken=taken)
    return dict(turn=0, taken=runner.iter)


def geometry_of(runner):
    """What a position counts in: processes, images of a batch of each, batches of a pass (None where not known)."""
    loader = runner.train_loop.dataloader
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
    try:
        batches = len(loader)
    except TypeError:  # iterable data
        batches = None
    return get_world_size(), size if isinstance(size, int) else None, batches


def schedule_of(runner):
    """Learning rates and the like of a training that starts: of the optimizer's groups, and of the schedulers."""
    groups = [{key: value for key, value in group.items() if key != 'params'} for group in _groups(runner)]
    return copy.deepcopy((groups, [scheduler.state_dict() for scheduler in _schedulers(runner)]))


def _groups(runner):
    return runner.optim_wrapper.param_groups if isinstance(runner.optim_wrapper, OptimWrapper) else []


def _schedulers(runner):
    return runner.param_schedulers if isinstance(runner.param_schedulers, list) else []


def fit_position(runner, path, entry, start):
    """Bring a training that was resumed with another batch, or other data, to where it stands in these.

    Args:
        runner (Runner): With what the checkpoint says loaded.
        path (str): The checkpoint.
        entry (dict or None): Of the checkpoint; its positions are changed.
        start (tuple): :func:`schedule_of` the training before anything was loaded.

    Raises:
        ResumeError: Where it has no such place.
    """
    loop, now = runner.train_loop, dict(zip(_GEOMETRY, geometry_of(runner)))
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    before = {key: entry[key] for key in _GEOMETRY} if entry else dict.fromkeys(_GEOMETRY)
    if not entry and by_epoch and loop.epoch and loop.iter % loop.epoch == 0:
        before['batches'] = loop.iter // loop.epoch
    counted = _GEOMETRY if by_epoch else _GEOMETRY[:2]
    changed = [key for key in counted if None not in (before[key], now[key]) and before[key] != now[key]]
    if not changed:
        return
    for state in entry['ranks'] if entry else ():
        state.pop('digest', None)  # of other batches
    differs = f'the checkpoint is of {_describe(before)}, this training of {_describe(now)}'
    images, images_now = _images(before), _images(now)
    if images == images_now and 'batches' not in changed:
        runner.logger.warning(
            f'{differs}: as many images a step, so position and schedule stay, but it is not equal to the bit'
        )
        return
    reason = _no_conversion(runner, by_epoch)
    if reason:
        size, rest = divmod(images or 0, now['world_size'])
        way = f' (train_dataloader.batch_size={size})' if size and not rest else ''
        raise ResumeError(
            f'{path} cannot be resumed: {differs}, and {reason}. Train with as many images a step as before{way}, or '
            'start a new training from its weights: leave resume out and set load_from.'
        )
    iterations, rate = loop.iter, _rate(runner)
    taken = 0
    for state in entry['ranks'] if entry else ():
        if 'taken' in state:
            taken = state['taken'] = min(state['taken'] * (images or 1) // (images_now or 1), now['batches'])
    loop._iter = loop.epoch * now['batches'] + taken
    _replay_schedule(runner, start, loop.epoch, now['batches'], taken)
    scaled = (runner.auto_scale_lr or {}).get('enable', False)
    runner.logger.warning(
        f'{differs}: it goes on at the same epoch, {loop.epoch}, with iteration {loop.iter} for {iterations} and the '
        f'learning rate {_rate(runner):g} for {rate:g}, which is that of the config there, '
        + ('scaled with the batch by auto_scale_lr' if scaled else 'not scaled with the batch (no auto_scale_lr)')
    )


def _describe(geometry):
    world_size, size, batches = (geometry[key] for key in _GEOMETRY)
    parts = [f'{world_size} x {size} images a step'] * (size is not None) + [f'{batches} steps an epoch'] * bool(
        batches
    )
    return ' and '.join(parts)


def _images(geometry):
    return (
        None
        if None in (geometry['world_size'], geometry['batch_size'])
        else (geometry['world_size'] * geometry['batch_size'])
    )


def _rate(runner):
    return next((group['lr'] for group in _groups(runner) if 'lr' in group), math.nan)


def _no_conversion(runner, by_epoch):
    """Why a position has none in steps of other images (str; '' if it has)."""
    if not by_epoch:
        return 'max_iters, schedule and files of an iteration-based training count steps of so many images'
    if any(isinstance(hook, CheckpointHook) and not hook.by_epoch for hook in runner.hooks):
        return 'its checkpoints are numbered by iterations'
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        return 'the schedules of several optimizers are not converted'
    plateau = [type(s).__name__ for s in _schedulers(runner) if getattr(s, 'need_val_args', False)]
    return f'{plateau[0]} has set learning rates from evaluations' if plateau else ''


def _replay_schedule(runner, start, epochs, batches, taken):
    """Step the schedule of a training that starts to where it is after so many epochs, and iterations of the next."""
    groups, states = start
    for group, values in zip(_groups(runner), groups):
        group.update(values)
    schedulers = _schedulers(runner)
    for scheduler, state in zip(schedulers, states):
        scheduler.load_state_dict(state)
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the optimizer made no step
        for epoch in range(epochs + 1):
            for scheduler in by_iteration * (batches if epoch < epochs else taken):
                scheduler.step()
            for scheduler in schedulers if epoch < epochs else ():
                if scheduler.by_epoch:
                    scheduler.step()
