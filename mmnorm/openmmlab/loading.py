"""Guards around mmengine's loading of checkpoints, where the norms of a file are not those of the model.

- ``mmengine.runner.checkpoint.load_state_dict`` (``load_from``, ``init_cfg``) loads what fits and lists the other
  names: SN, RBN or IBN weights in BN layers are a list of names and a network that computes something else. It says so.
- ``Runner.resume`` loads what fits into the model, and then ends in torch's error about parameter groups, or, where
  these agree, goes on with a network that was never trained: it says what differs, before anything is loaded.
"""

import functools
import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict

from mmnorm.blocks import norm_layers
from mmnorm.blocks.guards import rebind
from mmnorm.norms import MARKS, OWN_TENSORS
from mmnorm.statistics import unwrapped
from mmnorm.terminal import command

_OF_NORMS = {'running_mean', 'running_var', 'num_batches_tracked', *OWN_TENSORS}
_SHOWN = 3


class ResumeError(ValueError):
    """A checkpoint cannot be resumed with the network of the config."""


def install():
    """Wrap the functions above; called once, by ``import mmnorm``."""
    rebind(load_state_dict, _naming_lost_norms(load_state_dict))
    Runner.resume = _comparing_norms(Runner.resume)


def _naming_lost_norms(load):

    @functools.wraps(load)
    def guarded(module, state_dict, strict=False, logger=None):
        lost = describe_lost_norms(module, state_dict)
        load(module, state_dict, strict, logger)
        if lost:
            print_log(lost, logger, logging.WARNING)

    return guarded


def describe_lost_norms(model, state_dict):
    """Say which norms of a checkpoint (str; '' if none) become others in a model, and lose tensors of their own."""
    lost = {}
    for name, layer in norm_layers(model).items():
        own = {**layer._parameters, **layer._buffers}
        leaf = next((leaf for leaf in OWN_TENSORS if leaf not in own and f'{name}.{leaf}' in state_dict), None)
        if leaf:
            lost.setdefault((OWN_TENSORS[leaf], type(layer).__name__, leaf), []).append(name)
    return '\n'.join(
        f'{len(names)} norms of the checkpoint are {norm}, as their {leaf} shows, and {kind} in this model '
        f'({_listed(names)}): the network computes something else than what was trained. Give norm_cfg (and xbn) what '
        f'it was trained with, or convert the checkpoint ({command("convert")}).'
        for (norm, kind, leaf), names in lost.items()
    )


def _comparing_norms(resume):

    @functools.wraps(resume)
    def guarded(self, filename, *args, **kwargs):
        check = _CheckResumed(filename)
        self._hooks.insert(0, check)  # before EMAHook, which loads its own part
        try:
            return resume(self, filename, *args, **kwargs)
        finally:
            self._hooks.remove(check)

    return guarded


class _CheckResumed(Hook):
    """Raise a ResumeError before a checkpoint is resumed with other norms, or other parameters to optimize."""

    def __init__(self, path):
        self.path = path

    def after_load_checkpoint(self, runner, checkpoint):
        model = unwrapped(runner.model)
        what = describe_other_norms(model, checkpoint.get('state_dict', checkpoint))
        what = what or describe_other_groups(runner.optim_wrapper, checkpoint.get('optimizer'))
        if not what and not {'epoch', 'iter'} <= set(checkpoint.get('meta') or ()):
            what = 'it does not say how far its training was (epoch and iter in its meta)'
        if what:
            raise ResumeError(
                f'{self.path} cannot be resumed: {what}. To resume is to go on with the same training of the same '
                'network: give the config the norms that it was trained with. To start a new training from its '
                f"weights, leave resume out and set load_from='{self.path}'."
            )


def describe_other_norms(model, state_dict):
    """Say which norms of a checkpoint (str; '' if none) have other tensors than those of a model."""
    theirs = {key.removeprefix('module.'): value.shape for key, value in state_dict.items() if hasattr(value, 'shape')}
    ours = {name: value.shape for name, value in model.state_dict().items()}
    norms, differing = norm_layers(model), {}
    for key in dict.fromkeys([*ours, *theirs]):
        name, _, leaf = key.rpartition('.')
        # files of earlier versions lack the marks
        if ours.get(key) == theirs.get(key) or leaf in MARKS and key not in theirs:
            continue
        if name in norms or leaf in _OF_NORMS:
            where = f'of other shape: {leaf}'
            if key not in ours or key not in theirs:
                where = f'only in the {"checkpoint" if key in theirs else "model"}: {leaf}'
            differing.setdefault(name, []).append(where)
    if not differing:
        return ''
    first = next(iter(differing))
    kind = f', {type(norms[first]).__name__} in the model' if first in norms else ''
    return (
        f'{len(differing)} of its norms are not those of the model ({_listed(differing)}). In {first}{kind}: '
        + ', '.join(differing[first])
    )


def describe_other_groups(optim_wrapper, state):
    """Say how the parameter groups of a checkpoint's optimizer (str; '' if not) differ from an optimizer's."""
    optimizer = getattr(optim_wrapper, 'optimizer', None)
    if optimizer is None or not isinstance(state, dict) or 'param_groups' not in state:
        return ''  # several optimizers, or none
    theirs, ours = (
        [len(group['params']) for group in groups] for groups in (state['param_groups'], optimizer.param_groups)
    )
    if theirs == ours:
        return ''
    return (
        f'its optimizer has {sum(theirs)} parameters in {len(theirs)} groups, that of this training {sum(ours)} in '
        f'{len(ours)}, as when norms are frozen, hardened or of another type, or paramwise_cfg differs'
    )


def _listed(names):
    names = list(names)
    return ', '.join(names[:_SHOWN]) + ' ...' * (len(names) > _SHOWN)
