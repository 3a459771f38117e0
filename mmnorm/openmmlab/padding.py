"""Evaluation of padded batches: what norms make of the padding is said, or kept out of their statistics.

A guard around ``BaseModel._run_forward`` of mmengine, which every evaluation passes (``val_step``, ``test_step``): a
batch of images of several sizes is padded to the largest, and without a word norms that take statistics of each sample
would take them over the padding, so that a result depends on which images share its batch.
"""

import contextlib
import functools
from collections import Counter

import mmengine.model
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from torch import nn

from mmnorm.blocks import padding_readers, type_name, valid_regions
from mmnorm.norms.checks import warn_once
from mmnorm.statistics import unwrapped


class ValidRegionHook(Hook):
    """Evaluate each image of a padded batch by statistics of its own region alone, as if its batch size were 1.

    For all norms that take statistics of each sample, stock GroupNorm and InstanceNorm too; see
    :func:`~mmnorm.valid_regions`. What each image would be padded to alone (``pad_shape`` in mmdet) is its region.
    Layers in RoI heads stay as they are, since their inputs are RoIs. Training does not change: BN's part of a norm is
    of the whole batch there, padding included, as BN's own statistics always are.
    """

    def before_run(self, runner):
        normalize_valid_regions(runner.model)


def normalize_valid_regions(model: nn.Module, on: bool = True) -> None:
    """Have ``val_step`` and ``test_step`` of a model do what :class:`ValidRegionHook` says.

    Args:
        model (nn.Module): An mmengine model, wrapped or not; one with test-time augmentation too.
        on (bool): False ends it.
    """
    for module in unwrapped(model).modules():
        if isinstance(module, BaseModel):
            module.normalizes_valid_regions = on


def install() -> None:
    """Guard the evaluation of every mmengine model; called once, by ``import mmnorm``."""
    for kind in (BaseModel, getattr(mmengine.model, 'MMFullyShardedDataParallel', None)):
        if kind is not None:
            kind._run_forward = _minding_padding(kind._run_forward)


def _minding_padding(run_forward):
    @functools.wraps(run_forward)
    def guarded(self, data, mode):
        model = unwrapped(self)
        sizes = None if mode == 'loss' else sizes_alone(model, data)
        if sizes is None:
            return run_forward(self, data, mode)
        padded_to, on_rois = tuple(data['inputs'].shape[-2:]), _parts_on_rois(model)
        if not getattr(model, 'normalizes_valid_regions', False):
            _warn(model, padding_readers(model, on_rois))
            return run_forward(self, data, mode)
        with valid_regions(model, sizes, padded_to, on_rois), _refusing_crops(model, padded_to):
            return run_forward(self, data, mode)

    return guarded


def sizes_alone(model: nn.Module, data) -> list[tuple[int, int]] | None:
    """What each image of a batch would be padded to if it were alone.

    Args:
        model (nn.Module): An mmengine model, not wrapped.
        data: What its data preprocessor gave.

    Returns:
        list[tuple[int, int]] or None: Height and width in pixels; None if no image is padded for the others' sake, or
        nothing is said of their sizes.
    """
    inputs, samples = (data.get(key) if isinstance(data, dict) else None for key in ('inputs', 'data_samples'))
    if not torch.is_tensor(inputs) or inputs.dim() < 4 or not isinstance(samples, (list, tuple)) or len(samples) < 2:
        return None
    padded_to, sizes = tuple(inputs.shape[-2:]), []
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    for sample in samples:
        meta = getattr(sample, 'metainfo', {})
        size = meta.get('pad_shape') or meta.get('img_shape')
        if size is None:
            return None
        sizes.append(tuple(min(-(-int(own) // divisor) * divisor, batch) for own, batch in zip(size, padded_to)))
    return None if all(size == padded_to for size in sizes) else sizes


def _parts_on_rois(model):
    """What of a detector works on regions of interest, whose number may be that of the images by chance."""
    return [
        part
        for head in model.modules()
        if hasattr(head, 'bbox_roi_extractor')
        for name, part in head.named_children()
        if name not in ('semantic_head', 'glbctx_head')  # HTC's and SCNet's, on the images
    ]


def _warn(model, readers):
    if readers:
        kinds = Counter(map(type_name, readers.values()))
        warn_once(
            f'{type(model).__name__} evaluates batches of images of several sizes, padded to the largest, and takes '
            f'statistics over the padding in {", ".join(f"{count} {kind}" for kind, count in kinds.items())} layers '
            f'(first: {next(iter(readers))}): what it predicts for an image depends on the others of its batch. Set '
            "batch_size=1 in val_dataloader and test_dataloader, or add dict(type='ValidRegionHook') to custom_hooks "
            '(in code: mmnorm.openmmlab.padding.normalize_valid_regions(model)).'
        )


@contextlib.contextmanager
def _refusing_crops(model, padded_to):
    """Raise where a model cuts its batch up, as slide inference does: a crop's regions are not those of the batch."""

    def check(backbone, args):
        if args and torch.is_tensor(args[0]) and tuple(args[0].shape[-2:]) != padded_to:
            raise ValueError(
                f'ValidRegionHook: the backbone of {type(model).__name__} gets {tuple(args[0].shape[-2:])} of images '
                f"padded to {padded_to}, as in slide inference (test_cfg=dict(mode='slide')): which part of it is "
                'an image, is not known. Evaluate with batch_size=1, or without the hook'
            )

    backbone = getattr(model, 'backbone', None)
    handle = backbone.register_forward_pre_hook(check) if isinstance(backbone, nn.Module) else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
