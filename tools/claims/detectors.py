#!/usr/bin/env python
"""What papers xbn and sn claim of detectors from scratch, in miniature: the digits' Mask R-CNN at 2, 4 and 8 images.

- xbn: XBN over BN over GN with the learning rate that suits each (xbn, Table 6). As in the paper half, once and twice
  the usual rate are tried, here with the first seed, and the best by box AP is taken for all seeds.
- sn: SN in all parts of the detector, whose ratios differ between backbone, box head and mask head, and follow the
  batch size (sn, Figures 1, 5 and 7).

All trainings see equally many images. The usual rate is the config's, which follows the batch size linearly.

    python tools/make_digits.py data/digits
    python tools/claims/detectors.py

Writes detectors.json and a plot of each claim. What the results already hold is not run again: what was interrupted
goes on.
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
    ROOT,
    SCOPES,
    add_common_arguments,
    begin,
    is_recorded,
    mean_ratios,
    over_seeds,
    points,
    read_results,
    record,
    run_all,
    silence,
    write_png,
)
from mmnorm.engine.race import Start, racing_config, with_norm
from mmnorm.norms import ratios
from mmnorm.report.plots import COLORS, MARKERS
from mmnorm.report.tables import TITLES

NAME = 'detectors'
SEEDS = 3
SETTINGS = 'length', 'side', 'val_images'
CONFIG = 'mask_rcnn_xbn_r50_digits'
SIZES = 2, 4, 8
RATES = 0.5, 1, 2  # times the usual learning rate
CLAIMS = 'xbn', 'sn'
NORMS = {'BN': 'BN', 'GN': 'GN:num_groups=16', 'XBN': 'XBN'}  # as mmnorm race takes them
SN_EVERYWHERE = 'SN'
PARTS = {'backbone': 'backbone', 'neck': 'FPN', 'bbox_head': 'box head', 'mask_head': 'mask head'}
METRICS = {'AP^bbox': 'coco/bbox_mAP', 'AP^mask': 'coco/segm_mAP'}


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, NAME, SEEDS)
    parser.add_argument('--claims', nargs='+', choices=CLAIMS, default=list(CLAIMS), help='default: both')
    parser.add_argument('--data', default='data/digits', type=Path, metavar='DIR', help='default: %(default)s')
    parser.add_argument(
        '--work-dir', default='work_dirs/claims_detectors', type=Path, metavar='DIR', help='default: %(default)s'
    )
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='trainings at a time (default: %(default)s)')
    parser.add_argument(
        '--length', type=float, default=0.5, metavar='SHARE', help="of the config's schedule (default: %(default)s)"
    )
    for name, default, what in (('side', 96, 'pixels of an image'), ('val-images', 150, 'to evaluate on')):
        parser.add_argument(f'--{name}', type=int, default=default, metavar='N', help=f'{what} (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.tiny:
        args.length, args.side, args.val_images = 0.25, 64, 4
    return args


def arm_of(norm, size, rate=1):
    """The name of an arm in the results."""
    return f'{norm}, batch {size}, rate x {rate:g}'


def config_of_training(args, norm, size, rate, seed):
    """The config (Config) of one training: what ``mmnorm race`` makes of the digits' Mask R-CNN.

    ``norm`` is a key of :data:`NORMS`, or :data:`SN_EVERYWHERE`: then FPN and heads have it as well, and the box head
    is of convolutions, as in paper sn.
    """
    from mmengine.config import Config

    cfg = Config.fromfile(ROOT / f'configs/{CONFIG}.py')
    if norm == SN_EVERYWHERE:
        box_head = cfg.model.roi_head.bbox_head
        box_head.update(type='Shared4Conv1FCBBoxHead', conv_out_channels=box_head.in_channels)
        for part in (cfg.model.neck, box_head, cfg.model.roi_head.mask_head):
            part.norm_cfg = dict(type='BN')  # for the race to replace
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(args.data / 'coco') + '/'
        loader.update(num_workers=0, persistent_workers=False)
        next(step for step in loader.dataset.pipeline if step.type == 'Resize').scale = (args.side, args.side)
    cfg.val_dataloader.dataset.indices = args.val_images
    if args.tiny:
        cfg.train_dataloader.dataset.indices = 8
    cfg.val_evaluator.ann_file = str(args.data / 'coco/annotations/instances_val2017.json')
    cfg = racing_config(
        with_norm(cfg, NORMS.get(norm, norm)), Start(norm, size, seed), processes=1, length=args.length,
        lr_scaling='linear',
    )  # fmt: skip
    cfg.optim_wrapper.optimizer.lr *= rate
    name = f'{norm}_b{size}_x{rate:g}_seed{seed}'
    cfg.merge_from_dict(dict(work_dir=str(args.work_dir / name), experiment_name=name, log_level='ERROR'))
    return cfg


def train(args, norm, size, rate, seed):
    """Train one detector and evaluate it; the row of the results."""
    from mmnorm import engine

    start = time.monotonic()
    runner = engine.Runner.from_cfg(config_of_training(args, norm, size, rate, seed))
    runner.train()
    found = runner.val()
    metrics = {name: round(100 * found[key], 2) for name, key in METRICS.items()}
    return dict(
        arm=arm_of(norm, size, rate),
        seed=seed,
        learning_rate=runner.optim_wrapper.optimizer.param_groups[0]['initial_lr'],
        iterations=runner.iter,
        seconds=round(time.monotonic() - start, 1),
        metrics=metrics | shares(runner.model),
    )


def shares(model):
    """SN's ratios (dict) by part of a detector: the means over its layers, as ``'IN in mean of box head'``."""
    found = ratios(model)
    return {
        f'{ratio} of {title}': float(f'{share:.4g}')
        for part, title in PARTS.items()
        for ratio, share in mean_ratios([layer for name, layer in found.items() if part in name.split('.')]).items()
    }


def run_training(args, norm, size, rate, seed, path):
    """Train one detector and record it, if the results lack it."""
    arm = arm_of(norm, size, rate)
    if is_recorded(read(args, path)['trainings'], arm, seed):
        return
    with silence():
        row = train(args, norm, size, rate, seed)
    record(path, partial(read, args, path), 'trainings', row)
    print(f'{arm}, seed {seed}, {row["seconds"]:.0f} s: {row["metrics"]}', flush=True)


def tried(results, norm, size):
    """Box AP of the first seed by learning rate (dict), None where it has not run."""
    first = results['about']['seeds'][0]
    found = {row['arm']: row['metrics']['AP^bbox'] for row in results['trainings'] if row['seed'] == first}
    return {rate: found.get(arm_of(norm, size, rate)) for rate in RATES}


def best_rate(results, norm, size):
    """The rate with the highest box AP of the first seed; None before all were tried."""
    of_rates = tried(results, norm, size)
    return None if None in of_rates.values() else max(of_rates, key=of_rates.get)


def read(args, path):
    """What the results hold already (:func:`common.read_results`)."""
    return read_results(path, args, SETTINGS, dict(trainings=[]))


def best_arms(results):
    """The arm of each norm and batch size at its best rate (dict), as far as it is known."""
    rates = {(norm, size): best_rate(results, norm, size) for norm in NORMS for size in SIZES}
    return {place: arm_of(*place, rate) for place, rate in rates.items() if rate}


def print_tables(results):
    """Print box and mask AP of all arms, mean and standard deviation over seeds."""
    from tabulate import tabulate

    rows = results['trainings']
    arms = sorted({row['arm'] for row in rows})
    best = set(best_arms(results).values())
    table = [[arm + ' (best)' * (arm in best), *(over_seeds(rows, arm, metric) for metric in METRICS)] for arm in arms]
    text = [[arm, *('{mean:.1f} \u00b1 {std:.1f}'.format(**value) for value in values)] for arm, *values in table]
    print(tabulate(text, ['', *METRICS], 'github', disable_numparse=True))
    for arm in (arm_of(SN_EVERYWHERE, size) for size in SIZES):
        for metric in next((row['metrics'] for row in rows if row['arm'] == arm), {}):
            if metric not in METRICS:
                print(arm, metric, '{mean:.3f} \u00b1 {std:.3f}'.format(**over_seeds(rows, arm, metric)))


def draw_xbn(results, figure):
    """Box AP over batch size at the best rate of each norm; and what each rate gave."""
    rows, best = results['trainings'], best_arms(results)
    left, *right = figure.subplots(1, 1 + len(SIZES), sharey=True)
    for norm, color, marker in zip(NORMS, COLORS, MARKERS):
        places = {best[norm, size]: place for place, size in enumerate(SIZES) if (norm, size) in best}
        points(left, rows, places, color, norm, 'AP^bbox', marker=marker)
        for axes, size in zip(right, SIZES):
            if (norm, size) in best:
                axes.plot(range(len(RATES)), list(tried(results, norm, size).values()), color=color, marker=marker)
    left.set_xticks(range(len(SIZES)), SIZES)
    left.set(title='Table 6: at the best rate', xlabel='Images in a batch', ylabel=f'{TITLES["AP^bbox"]} (%)')
    left.legend()
    for axes, size in zip(right, SIZES):
        axes.set_xticks(range(len(RATES)), RATES)
        axes.set(title=f'{size} images', xlabel='Learning rate over the usual')


def draw_sn(results, figure):
    """SN's ratios by part, for mean and variance, over batch size."""
    rows, places = results['trainings'], {arm_of(SN_EVERYWHERE, size): place for place, size in enumerate(SIZES)}
    for line, what in zip(figure.subplots(2, len(PARTS), sharey=True, sharex=True), ('mean', 'var')):
        for axes, part in zip(line, PARTS.values()):
            for number, scope in enumerate(SCOPES):
                metric = f'{scope} in {what} of {part}'
                points(axes, rows, places, COLORS[number + 3], scope, metric, marker=MARKERS[number])
            axes.set_title(f'{part}: {dict(mean="mean", var="variance")[what]}')
            axes.set_xticks(range(len(SIZES)), SIZES)
        line[0].set_ylabel('Ratio')
    for axes in line:
        axes.set_xlabel('Images in a batch')
    line[0].legend()


def draw(results, folder):
    """Write the plots to a folder."""
    seeds = ', '.join(map(str, results['about']['seeds']))
    for claim, size, panels, note in (
        (
            'xbn',
            (11.5, 3.6),
            draw_xbn,
            f'left: points: seeds {seeds}, lines: their means; others: the first seed',
        ),
        ('sn', (10.8, 5), draw_sn, f'SN in all parts; means over layers; points: seeds {seeds}, lines: their means'),
    ):
        if any(row['arm'].startswith(SN_EVERYWHERE) == (claim == 'sn') for row in results['trainings']):
            note = f'Mask R-CNN on digits, from scratch; {note}'
            write_png(folder / f'{NAME}_{claim}.png', size, partial(panels, results), note)


def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)
    path = begin(args, NAME)
    if args.plot_only:
        draw(json.loads(path.read_text()), args.out)
        return
    from mmnorm import engine
    from mmnorm.engine.preflight import problems

    warnings.simplefilter('ignore')
    first, *others = args.seeds
    found = problems(config_of_training(args, SN_EVERYWHERE, SIZES[0], 1, first), 1, ('train', 'val'))
    if found:
        engine.stop('\n\n'.join(found))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    run = partial(run_training, args, path=path)
    if 'xbn' in args.claims:
        run_all(args.jobs, run, [(norm, size, rate, first) for size in SIZES for norm in NORMS for rate in RATES])
        results = read(args, path)
        at_best = [(norm, size, best_rate(results, norm, size)) for size in SIZES for norm in NORMS]
        run_all(args.jobs, run, [(*arm, seed) for seed in others for arm in at_best])
    if 'sn' in args.claims:
        run_all(args.jobs, run, [(SN_EVERYWHERE, size, 1, seed) for seed in args.seeds for size in SIZES])
    results = read(args, path)
    print_tables(results)
    draw(results, args.out)


if __name__ == '__main__':
    main()
