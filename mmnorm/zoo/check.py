"""Whether a config is what its entry says: norms counted, one training and one test step, the right layers fixed.

Of a classification row also the recipe, and where a row says which pretraining it starts from, whether that fits.
"""

import contextlib
import copy
import io
import re
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmnorm.blocks import list_norms, norm_layers, type_name
from mmnorm.engine import parse_config
from mmnorm.openmmlab.configs import dicts

from .rows import HOME

SIDE = 64  # pixels of the synthetic images
# What keeps a step on synthetic images small: proposals and samples of heads; and anchors larger than them are valid
_SMALL = dict(nms_pre=64, max_per_img=16, num=16, allowed_border=-1)


@dataclass
class Check:
    """What was found of a config.

    Attributes:
        name: Of the entry.
        norms: As :func:`count_norms` gives them; {} if the network was not built.
        problems: A sentence each; empty if the config is what its entry says.
        seconds: What all took.
    """

    name: str
    norms: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Network:
    """What was found of a network: its norms, the layers that XBN placed in its backbone, what a step has shown."""

    norms: dict
    placed: list
    problems: list = field(default_factory=list)


def check_model(model, networks=None):
    """Parse and build a config, count its norms, train one step and test one on synthetic images.

    Nothing is loaded: weights are random. SyncBN runs as BN where there is no GPU, after it was counted.

    Args:
        model (Model): Entry of the metafile.
        networks (dict or None): What earlier calls found of their networks; gets what this one finds. A network that
            is in it is not built again: rows may differ in data, batch and schedule alone.

    Returns:
        Check: With every problem that was found.
    """
    check, start = Check(model.name), time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try:
            _check(model, check, {} if networks is None else networks)
        except Exception as error:  # of any class that a config names: the others are to be checked all the same
            check.problems.append(f'{type(error).__name__}: {" ".join(str(error).split())}')
    check.seconds = time.perf_counter() - start
    return check


def _check(model, check, networks):
    torch.manual_seed(0)
    cfg = parse_config(model.path)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    scale = cfg.get('auto_scale_lr') or {}
    if not (scale.get('enable') and scale.get('base_batch_size')):
        check.problems.append('auto_scale_lr is not enabled with a base_batch_size')
    _check_start(model, cfg, check.problems)
    _check_training(model, cfg, check.problems)
    for row in model.published:
        if row.options:
            _check_options(model, row, copy.deepcopy(cfg), check.problems, networks)
    if model.pretrained.get('From'):
        _check_pretraining(model, copy.deepcopy(cfg), check.problems, networks)
    network = _once(networks, 'stepped', cfg, _build_and_step)
    check.norms = network.norms
    check.problems += network.problems
    if check.norms != model.norms:
        check.problems.append(f'its norms are {check.norms}, its entry says {model.norms}')
    if not all(re.fullmatch(model.placed or '.*', name) for name in network.placed):
        check.problems.append(f'{", ".join(network.placed)} are placed, its entry says {model.placed}')


def _once(networks, what, cfg, find):
    """What a function finds of a network, once for all configs (Config) that build and optimize the same one."""
    key = what, str((cfg.get('default_scope'), cfg.model, cfg.optim_wrapper.get('paramwise_cfg')))
    if key not in networks:
        networks[key] = find(cfg)
    return networks[key]


def _build_and_step(cfg):
    network = build_untrained(cfg)
    network.train()
    found = Network(count_norms(network), list(getattr(network.backbone, 'xbn_layers', [])))
    step(revert_sync_batchnorm(network), cfg, found.problems)
    return found


def _check_start(model, cfg, problems):
    found = (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint') or cfg.model.get('pretrained')
    found = found or cfg.get('load_from')
    meant = model.pretrained.get('File')
    if found != meant:
        problems.append(f'it starts from {found}, its entry says {meant}')


def _check_training(model, cfg, problems):
    """Whether the recipe is the entry's (classification alone: the detectors' are those of their codebases)."""
    meant = model.training
    if not meant:
        return
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    steps = [epoch for scheduler in schedulers for epoch in scheduler.get('milestones', [])]
    cosine = any(scheduler.type == 'CosineAnnealingLR' for scheduler in schedulers)
    gpus, images = cfg.auto_scale_lr.base_batch_size, cfg.train_dataloader.batch_size
    found = dict(
        Epochs=cfg.train_cfg.max_epochs,
        # a paper may say only how large the batch is
        Batch=f'{gpus // images} x {images}' if 'x' in str(meant['Batch']) else gpus,
        Rate=cfg.optim_wrapper.optimizer.lr,
        Schedule='cosine' if cosine else steps,
        Decay=cfg.optim_wrapper.optimizer.weight_decay,
    )
    for key, value in found.items():
        if value != meant[key]:
            problems.append(f'it trains with {key} {value}, its entry says {meant[key]}')


def _check_options(model, row, cfg, problems, networks):
    cfg.merge_from_dict(row.options)
    wanted = {value for path, value in row.options.items() if path.endswith('norm_cfg.type')}
    wanted = wanted or {kind for kinds in model.norms.values() for kind in kinds}  # only their arguments differ
    norms = _once(networks, 'norms', cfg, lambda cfg: count_norms(build_untrained(cfg)))
    found = {kind for kinds in norms.values() for kind in kinds}
    if found != wanted:
        problems.append(f'with the options of {row.row} its norms are {", ".join(sorted(found))}')


def _check_pretraining(model, cfg, problems, networks):
    """Whether the pretraining that the entry names makes what the backbone loads, of the same images."""
    source = model.pretrained['From']
    pretraining = parse_config(HOME / source)
    theirs, ours = (_once(networks, 'backbone', one, _describe_backbone) for one in (pretraining, cfg))
    differing = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        problems.append(
            f'its backbone is not that of {source}: {name} is {ours.get(name, "not there")}, there '
            f'{theirs.get(name, "not there")}{f" ({len(differing)} differ)" * (len(differing) > 1)}'
        )
    pixels = [_pixels(one) for one in (cfg, pretraining)]
    if pixels[0] != pixels[1]:
        problems.append(f'its images have mean, deviation and RGB {pixels[0]}, those of {source} {pixels[1]}')


def _describe_backbone(cfg):
    """Of each convolution, norm and tensor of a backbone's state what has to be the same for weights to fit."""
    backbone = build_untrained(cfg).backbone
    found = {}
    for name, layer in norm_layers(backbone).items():  # first, since of what differs the first is named
        groups = f' of {layer.num_groups} groups' if hasattr(layer, 'num_groups') else ''
        found[name] = type_name(layer).removeprefix('Frozen').removeprefix('Sync') + groups
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            found[name] = f'Conv2d of stride {module.stride}, dilation {module.dilation} and {module.groups} groups'
    return found | {name: f'of shape {tuple(tensor.shape)}' for name, tensor in backbone.state_dict().items()}


def _pixels(cfg):
    """Mean and deviation of the images that a network sees, and whether they are RGB; mmpretrain says to_rgb."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    return preprocessor.mean, preprocessor.std, preprocessor.get('bgr_to_rgb', preprocessor.get('to_rgb', False))


def build_untrained(cfg):
    """Build the model (nn.Module) of a config (Config) with random weights and few proposals; cfg is changed."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    for part in dicts(cfg.model):
        for key in part.keys() & _SMALL.keys():
            part[key] = min(part[key], _SMALL[key])
        part.pop('pretrained', None)
        if 'checkpoint' in (part.get('init_cfg') or {}):
            part['init_cfg'] = None
    if 'data_preprocessor' not in cfg.model:  # as a Runner does it: mmpretrain has it beside the model
        cfg.model.data_preprocessor = cfg.get('data_preprocessor') or {}
    if 'size' in cfg.model.data_preprocessor:  # to which mmseg pads
        cfg.model.data_preprocessor.size = (SIDE, SIDE)
    return MODELS.build(cfg.model)


def count_norms(network):
    """Count norm layers.

    Args:
        network (nn.Module): In training mode.

    Returns:
        dict[str, dict[str, str]]: By part of the network that has any (backbone, neck, decode_head,
        roi_head.bbox_head ...) and by type: '17', or '13 + 4 fixed'. Fixed layers train neither statistics nor
        parameters; held ones normalize by running statistics and train gamma and beta; those by batch normalize by
        batch statistics and train nothing.
    """
    norms = {}
    for part, module in _parts(network):
        counts = Counter((layer.type, layer.state) for layer in list_norms(module))
        if counts:
            norms[part] = {
                kind: ' + '.join(
                    f'{counts[kind, state]} {state}'.removesuffix(' trains')
                    for state in ('trains', 'by batch', 'held', 'fixed')
                    if counts[kind, state]
                )
                for kind in sorted({kind for kind, _ in counts})
            }
    return norms


def _parts(network):
    for name, module in network.named_children():
        if name == 'roi_head':
            yield from ((f'{name}.{head}', part) for head, part in module.named_children())
        else:
            yield name, module


def step(network, cfg, problems):
    """Train one step and test one on synthetic images, and see that fixed layers stayed as they were.

    Args:
        network (nn.Module): In training mode; changed in place.
        cfg (Config): With its optimizer.
        problems (list[str]): Gets a sentence for whatever is wrong.
    """
    fixed = {
        layer.name: copy.deepcopy(network.get_submodule(layer.name).state_dict())
        for layer in list_norms(network)
        if layer.state == 'fixed'
    }
    MessageHub.get_instance('mmnorm_zoo')  # losses that change in the course of a training ask it for the iteration
    optim_wrapper = build_optim_wrapper(network, cfg.optim_wrapper)
    losses = network.train_step(synthetic_batch(cfg), optim_wrapper)
    bad = [key for key, value in losses.items() if not torch.isfinite(value).all()]
    if bad:
        problems.append(f'{", ".join(bad)} of the first training step is not finite')
    for name, state in fixed.items():
        now = network.get_submodule(name).state_dict()
        if any(not torch.equal(now[key], value) for key, value in state.items()):
            problems.append(f'{name} is fixed and was changed by a training step')
    network.eval()
    with torch.no_grad():
        if not network.test_step(synthetic_batch(cfg)):
            problems.append('a test step returned nothing')


def synthetic_batch(cfg, batch_size=2):
    """Make a batch (dict) of random images with the annotations that the config's task trains on."""
    if cfg.get('default_scope') == 'mmseg':
        return _segmentation_batch(cfg, batch_size)
    if cfg.get('default_scope') == 'mmpretrain':
        return _classification_batch(cfg, batch_size)
    from mmdet.testing import demo_mm_inputs

    roi_head = cfg.model.get('roi_head') or {}
    num_classes = (roi_head.get('bbox_head') or cfg.model.get('bbox_head')).num_classes
    return demo_mm_inputs(
        batch_size,
        (3, SIDE, SIDE),
        num_items=[2] * batch_size,
        num_classes=num_classes,
        with_mask=bool(roi_head.get('mask_head')),
        with_semantic='semantic_head' in cfg.model,
        sem_seg_output_strides=4,
    )


def _segmentation_batch(cfg, batch_size):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch_size):
        classes = torch.randint(cfg.model.decode_head.num_classes, (1, SIDE, SIDE), generator=generator)
        sample = SegDataSample(metainfo=dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE)))
        sample.gt_sem_seg = PixelData(data=classes)
        samples.append(sample)
    images = torch.randint(256, (batch_size, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return dict(inputs=list(images), data_samples=samples)


def _classification_batch(cfg, batch_size):
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(cfg.model.head.num_classes, (batch_size,), generator=generator)
    images = torch.randint(256, (batch_size, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return dict(inputs=list(images), data_samples=[DataSample().set_gt_label(label) for label in classes])
