#!/usr/bin/env python
"""Paper xbn's Table 4 in miniature: frozen BNs on weights that fit them.

For each seed a classifier of digits is trained with BN and one with XBN blocks, its backbone is published, and the
digits' Mask R-CNN is fine-tuned from it with all BNs frozen, the stem and the first stage too; beside them the detector
with XBN from scratch, with all norms live. All arms have the same recipe and see the same images equally often.

    python tools/make_digits.py data/digits
    python tools/make_digits.py data/digits_imagenet --layouts imagenet
    python tools/claims/pretraining.py

What the results already hold is not run again: what was interrupted goes on, and what is complete is drawn.
"""

import argparse
import json
import sys
import time
import warnings
from functools import partial
from pathlib import Path

# first of ours: it puts the checkout on the path
from common import (
    RESULTS,
    ROOT,
    is_recorded,
    over_seeds,
    read_results,
    record,
    run_seeds,
    silence,
    write_png,
    write_results,
)
from mmnorm.report.plots import COLORS
from mmnorm.report.tables import TITLES

CLASSIFIERS = {'bn': 'resnet50_bn_digits', 'xbn': 'resnet50_xbn_digits'}
DETECTORS = {'bn': 'mask_rcnn_frozenbn_r50_digits_pretrained', 'xbn': 'mask_rcnn_xbn_r50_digits_pretrained'}
ARMS = {
    'bn_frozen': 'BN, pretrained, frozen',
    'xbn_frozen': 'XBN, pretrained, BNs frozen',
    'xbn_scratch': 'XBN, from scratch',
}
METRICS = {'AP^bbox': 'coco/bbox_mAP', 'AP^mask': 'coco/segm_mAP'}
SIDE = 96  # pixels of an image in the detectors; those of their configs are larger
SETTINGS = 'pretrain_epochs', 'train_images', 'epochs', 'val_images'


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='N', help='default: 0 1 2')
    parser.add_argument(
        '--arms', nargs='+', choices=ARMS, default=list(ARMS), metavar='ARM', help='default: all of %(choices)s'
    )
    for what, default in (('data', 'data/digits'), ('classes', 'data/digits_imagenet')):
        parser.add_argument(f'--{what}', default=default, type=Path, metavar='DIR', help='default: %(default)s')
    parser.add_argument(
        '--work-dir', default='work_dirs/claims_pretraining', type=Path, metavar='DIR', help='default: %(default)s'
    )
    parser.add_argument(
        '--out',
        default=RESULTS,
        type=Path,
        metavar='DIR',
        help='for pretraining.json and its plot (default: tools/claims/results)',
    )
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='seeds at a time (default: %(default)s)')
    parser.add_argument('--plot-only', action='store_true', help='draw what pretraining.json in --out already holds')
    for name, default in zip(SETTINGS, (10, 600, 3, 100)):
        parser.add_argument(
            f'--{name.replace("_", "-")}', type=int, default=default, metavar='N', help='default: %(default)s'
        )
    return parser.parse_args(argv)


def classifier_config(args, norm, seed):
    """The config of a pretraining; only the norms differ between the two of a seed."""
    cfg = shortened(args, CLASSIFIERS[norm], f'{norm}_classifier_seed{seed}', args.pretrain_epochs, seed)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(args.classes)
    cfg.train_dataloader.batch_size = cfg.auto_scale_lr.base_batch_size
    return cfg


def detector_config(args, arm, seed):
    """The config of a fine-tuning, or of a training from scratch; only the backbone differs between arms."""
    norm, _, start = arm.partition('_')
    cfg = shortened(args, DETECTORS[norm], f'{arm}_seed{seed}', args.epochs, seed)
    backbone = cfg.model.backbone
    if start == 'frozen':
        backbone.init_cfg.checkpoint = str(weights_of(args, norm, seed))
    else:  # as _base_/scratch_norm.py has it
        backbone.update(init_cfg=None, norm_cfg=dict(type='BN'), norm_eval=False, frozen_stages=-1)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(args.data / 'coco')
        next(step for step in loader.dataset.pipeline if step.type == 'Resize').scale = (SIDE, SIDE)
    cfg.train_dataloader.dataset.indices, cfg.val_dataloader.dataset.indices = args.train_images, args.val_images
    cfg.val_evaluator.ann_file = str(args.data / 'coco/annotations/instances_val2017.json')
    return cfg


def shortened(args, config, name, epochs, seed):
    """A config of ours for one training of so many epochs, which is evaluated behind it."""
    from mmengine.config import Config

    cfg = Config.fromfile(ROOT / f'configs/{config}.py')
    cfg.merge_from_dict(
        dict(
            train_cfg=dict(max_epochs=epochs, val_begin=epochs + 1),
            randomness=dict(seed=seed),
            default_hooks=dict(checkpoint=dict(interval=epochs)),
            work_dir=str(args.work_dir / name),
            experiment_name=name,
            log_level='ERROR',
        )
    )
    cfg.param_scheduler[-1].end = epochs
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    return cfg


def weights_of(args, norm, seed):
    """Where the backbone of a classifier is published."""
    return args.work_dir / f'{CLASSIFIERS[norm]}_seed{seed}.pth'


def pretrain(args, norm, seed):
    """Train a classifier, publish its backbone to where the fine-tuning looks for it; the row of the results."""
    from mmnorm import engine
    from mmnorm.zoo.pretraining import publish_backbone

    start = time.monotonic()
    runner = engine.Runner.from_cfg(classifier_config(args, norm, seed))
    runner.train()
    accuracy = runner.val()['accuracy/top1']
    publish_backbone(
        Path(runner.work_dir, f'epoch_{args.pretrain_epochs}.pth'),
        detector_config(args, f'{norm}_frozen', seed),
        DETECTORS[norm],
        weights_of(args, norm, seed),
        dict(pretrained_with=f'{CLASSIFIERS[norm]}.py', data='digits', row=DETECTORS[norm]),
    )
    return row_of(runner, start, {'top-1': accuracy})


def train(args, arm, seed):
    """Train one detector and evaluate it; the row of the results."""
    from mmnorm import engine

    start = time.monotonic()
    runner = engine.Runner.from_cfg(detector_config(args, arm, seed))
    runner.train()
    metrics = runner.val()
    return row_of(runner, start, {name: 100 * metrics[key] for name, key in METRICS.items()})


def row_of(runner, start, metrics):
    """What is recorded of a training, with its metrics in percent."""
    return dict(
        learning_rate=runner.optim_wrapper.optimizer.param_groups[0]['initial_lr'],
        iterations=runner.iter,
        images_seen=runner.max_epochs * len(runner.train_dataloader.dataset),
        seconds=round(time.monotonic() - start, 1),
        metrics={name: round(value, 2) for name, value in metrics.items()},
    )


def read(args, path):
    """What the results hold already (:func:`common.read_results`)."""
    return read_results(path, args, SETTINGS, dict(pretrainings=[], trainings=[]))


def print_table(results):
    """Print all arms, mean and standard deviation over seeds."""
    from tabulate import tabulate

    rows = [
        [text, *('{mean:.1f} \u00b1 {std:.1f}'.format(**over_seeds(results['trainings'], arm, key)) for key in METRICS)]
        for arm, text in ARMS.items()
        if over_seeds(results['trainings'], arm, 'AP^bbox')
    ]
    print(tabulate(rows, ['', *METRICS], 'github', disable_numparse=True))
    for norm in CLASSIFIERS:
        accuracy = over_seeds(results['pretrainings'], norm, 'top-1')
        if accuracy:
            print('{}: top-1 of the classifier {mean:.1f} \u00b1 {std:.1f}'.format(norm, **accuracy))


def draw(results, folder):
    """Write the plot to a folder: each training a point, each arm's mean a bar."""

    def panels(figure):
        for axes, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS):
            for place, arm in enumerate(ARMS):
                values = [row['metrics'][metric] for row in results['trainings'] if row['arm'] == arm]
                if values:
                    axes.bar(place, over_seeds(results['trainings'], arm, metric)['mean'], 0.6, color=COLORS[place])
                    axes.plot([place] * len(values), values, 'o', color='#1d2733', markersize=4)
            axes.set_xticks(range(len(ARMS)), [text.replace(', ', ',\n') for text in ARMS.values()])
            axes.grid(axis='x', visible=False)
            axes.set(title=f'{TITLES[metric]}, %')

    write_png(folder / 'pretraining.png', (9, 3.6), panels, note='points: seeds; bars: their means')


def run_seed(args, seed, path):
    """Run what the results lack of a seed."""
    for arm in args.arms:
        norm, _, start = arm.partition('_')
        steps = [('pretrainings', norm, pretrain)] * (start == 'frozen') + [('trainings', arm, train)]
        for kind, name, run in steps:
            if is_recorded(read(args, path)[kind], name, seed) and (
                kind == 'trainings' or weights_of(args, norm, seed).is_file()
            ):
                continue
            with silence():
                row = run(args, name, seed)
            record(path, partial(read, args, path), kind, dict(arm=name, seed=seed, **row))
            print(f'{name}, seed {seed}, {row["seconds"]:.0f} s: {row["metrics"]}', flush=True)


def main():
    args = parse_args(sys.argv[1:])
    path = args.out / 'pretraining.json'
    if args.plot_only:
        draw(json.loads(path.read_text()), args.out)
        return
    from mmnorm import engine
    from mmnorm.engine.preflight import problems

    warnings.simplefilter('ignore')
    found = problems(detector_config(args, 'xbn_scratch', 0), 1, ('train', 'val'))
    found += problems(classifier_config(args, 'xbn', 0), 1, ('train', 'val'))
    if found:
        engine.stop('\n\n'.join(found))
    args.out.mkdir(parents=True, exist_ok=True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    write_results(path, read(args, path))
    run_seeds(args, run_seed, path)
    results = read(args, path)
    print_table(results)
    draw(results, args.out)


if __name__ == '__main__':
    main()
