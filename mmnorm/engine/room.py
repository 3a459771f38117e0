"""Whether a training's checkpoints will find room: their size is known before the first is written."""

import math
from itertools import chain

import torch
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from torch import nn

from mmnorm.files import WriteError, describe_size, free_space

_LIKE_ADAM = 2  # tensors for each parameter


def checkpoint_size(model, optimizers=(), ema=False):
    """Estimate the size of a checkpoint by its tensors, to which log history and config add little.

    What an optimizer keeps of a parameter before its first step is what the same optimizer keeps after a step with a
    parameter of two elements; where that cannot be tried, it is taken to keep as much as Adam.

    Args:
        model (nn.Module): With or without wrapper.
        optimizers (iterable[Optimizer]): Those whose state is saved.
        ema (bool): Whether an EMAHook saves a second set of weights.

    Returns:
        int: In bytes.
    """
    # not by its state_dict, for which all ranks have to come together where the model is sharded
    size = sum(value.nbytes for value in chain(model.parameters(), model.buffers())) * (1 + ema)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            trained = sum(value.nbytes for value in group['params'] if value.requires_grad)
            size += _kept_per_byte(type(optimizer), group) * trained
    return round(size)


def _kept_per_byte(kind, group):
    """Bytes that a class of optimizers keeps for a byte of the parameters of a group."""
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    try:
        probe = kind([dict(group, params=[parameter])], lr=group['lr'])
        probe.step()
    except Exception:  # of a class of the user's, or one that wants more than gradients
        return _LIKE_ADAM
    kept = [value for value in probe.state[parameter].values() if torch.is_tensor(value)]
    return sum(value.nbytes for value in kept if value.shape == parameter.shape) / parameter.nbytes


def size_of_next(runner, save_optimizer=True):
    """Estimate the size in bytes of the next checkpoint of a Runner that trains."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    optimizers = [one.optimizer for one in wrappers if isinstance(one, OptimWrapper)] if save_optimizer else []
    return checkpoint_size(runner.model, optimizers, any(isinstance(hook, EMAHook) for hook in runner.hooks))


def check_room(cfg, model):
    """Raise a WriteError if no checkpoint of a config's training finds room.

    Args:
        cfg (Config): With ``work_dir``.
        model (nn.Module): That of the config.
    """
    hook = dict(cfg.get('default_hooks') or {}).get('checkpoint') or {}
    optimizers = []
    if 'optimizer' in cfg.optim_wrapper and hook.get('save_optimizer', True):
        try:
            optimizers = [OPTIMIZERS.build(dict(cfg.optim_wrapper.optimizer, params=model.parameters()))]
        except Exception:  # what is wrong with it is told by the training; or it needs several processes
            optimizers = [torch.optim.Adam(model.parameters())]
    ema = any('EMAHook' in str(getattr(other, 'type', other)) for other in cfg.get('custom_hooks') or [])
    _check(hook.get('out_dir') or cfg.work_dir, checkpoint_size(model, optimizers, ema))


class CheckRoomHook(Hook):
    """Raise a WriteError when a training starts if no checkpoint finds room, and warn if not all will."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        if runner.rank != 0 or hook is None:
            return
        size, folder = size_of_next(runner, hook.save_optimizer), hook.out_dir or runner.work_dir
        _check(folder, size)
        done, end = (runner.epoch, 'max_epochs') if hook.by_epoch else (runner.iter, 'max_iters')
        left = getattr(runner.train_loop, end, done + 1) - done
        number = math.ceil(left / hook.interval) if hook.interval > 0 else 1
        if hook.max_keep_ckpts > 0:
            number = min(number, hook.max_keep_ckpts)
        if '://' not in str(folder) and free_space(folder) < number * size:
            runner.logger.warning(
                f'the {number} checkpoints to come take about {describe_size(number * size)}, and {folder} has '
                f'{describe_size(free_space(folder))} free: make room, or set default_hooks.checkpoint.max_keep_ckpts'
            )


def _check(folder, size):
    if '://' not in str(folder) and free_space(folder) < size:
        raise WriteError(
            f'{folder} has no room for a checkpoint: it takes about {describe_size(size)}, and '
            f'{describe_size(free_space(folder))} are free. Make room, or choose another folder (--work-dir)'
        )
