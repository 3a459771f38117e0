"""Training batches of an mmengine config, for statistics; and the pass of one through the network."""

import copy
import itertools

from mmengine.dist import get_world_size
from mmengine.runner import Runner, set_random_seed
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmnorm.statistics import unwrapped


def training_batches(dataloader, number, seed=0):
    """Batches of the training's size, pipeline and augmentation; the same ones for the same seed.

    Args:
        dataloader (dict): ``train_dataloader`` of a config, of any sampler.
        number (int): How many at most; each process has as many of its own.
        seed (int): Of the choice of images, their augmentation and what heads sample.

    Returns:
        tuple[iterator, int]: What the data loader gives, and how many.

    Raises:
        ValueError: The batches mix sources, or there is not one whole batch.
    """
    cfg = copy.deepcopy(dataloader)
    if 'MultiSource' in str((cfg.get('sampler') or {}).get('type')):
        raise ValueError(
            'the training batches mix sources, labeled and unlabeled, as those of semi-supervised '
            'training do: give the config of the detector itself, and a train_dataloader of one source'
        )
    cfg.update(sampler=dict(type='DefaultSampler', shuffle=True, seed=seed))
    # a smaller last batch would be normalized in another way than those of training
    (cfg.get('batch_sampler') or cfg).update(drop_last=True)
    loader = Runner.build_dataloader(cfg, seed=seed)
    # grouping by aspect ratio may make one batch less of some rank's images, and ranks must have as many
    number = min(number, len(loader) - (get_world_size() > 1 and bool(cfg.get('batch_sampler'))))
    if number < 1:
        raise ValueError(
            f'there is no whole training batch of {cfg.get("batch_size")} images for each process, or '
            'none was asked for'
        )
    set_random_seed(seed, diff_rank_seed=True)
    return itertools.islice(loader, number), number


def training_forward(model, batch):
    """Run a training batch as training does, ground truth and sampled RoIs included; its losses are dropped.

    Everything is in training mode for it, since detectors branch on that, except norms and dropout, which keep theirs.

    Args:
        model (nn.Module): An mmengine model, wrapped or not.
        batch (dict): Of its training data loader.

    Raises:
        ValueError: The model's loss needs something that it has in a running training alone.
    """
    model = unwrapped(model)
    evaluated = [module for module in model.modules() if not module.training and not _keeps_mode(module)]
    for module in evaluated:
        module.training = True
    try:
        model._run_forward(model.data_preprocessor(batch, True), mode='loss')
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{type(model).__name__} does not compute its losses outside of a training '
            f'({type(error).__name__}: {error})'
        ) from error
    finally:
        for module in evaluated:
            module.training = False


def _keeps_mode(module):
    return isinstance(module, (_NormBase, nn.MultiheadAttention, nn.RNNBase)) or 'Drop' in type(module).__name__
