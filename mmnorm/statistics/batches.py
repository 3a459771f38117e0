"""Training batches of an mmengine config, for statistics; and the pass of one through the network."""
import copy
import itertools

from mmengine.runner import Runner, set_random_seed

from .collect import unwrapped


def training_batches(dataloader, number, seed=0):
    """Batches of the training's size, pipeline and augmentation; the same ones for the same seed.

    Args:
        dataloader (dict): ``train_dataloader`` of a config, of any sampler.
        number (int): How many at most; each process has as many of its own.
        seed (int): Of the choice of images, their augmentation and what heads sample.

    Returns:
        tuple[iterator, int]: What the data loader gives, and how many.
    """
    cfg = copy.deepcopy(dataloader)
    cfg.update(sampler=dict(type='DefaultSampler', shuffle=True, seed=seed))
    # a smaller last batch would be normalised in another way than those of training
    (cfg.get('batch_sampler') or cfg).update(drop_last=True)
    loader = Runner.build_dataloader(cfg, seed=seed)
    number = min(number, len(loader))
    set_random_seed(seed, diff_rank_seed=True)
    return itertools.islice(loader, number), number


def training_forward(model, batch):
    """Run a training batch as training does, ground truth and sampled RoIs included; its losses are dropped.

    Args:
        model (nn.Module): An mmengine model, wrapped or not; its modes stay.
        batch (dict): Of its training data loader.
    """
    model = unwrapped(model)
    model._run_forward(model.data_preprocessor(batch, True), mode='loss')
