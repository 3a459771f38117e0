"""Trainings of a few iterations by mmengine's Runner, of models whose forward gives a loss."""

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader


def runner(folder, model, iterations=8, hooks=(), **arguments):
    """Of batches of 2 in the shape (2, 4, 4), with a checkpoint after each iteration."""
    wrapper = dict(optimizer=dict(type='SGD', lr=0.1)) | arguments.pop('optim_wrapper', {})
    return Runner(
        model=model,
        work_dir=str(folder),
        experiment_name=f'{folder.name}{iterations}{len(list(folder.iterdir()))}',
        train_dataloader=DataLoader([dict(inputs=torch.randn(2, 4, 4)) for _ in range(32)], batch_size=2),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=wrapper,
        custom_hooks=list(hooks),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
        cfg=Config(),
        **arguments,
    )
