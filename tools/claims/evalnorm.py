#!/usr/bin/env python
"""EvalNorm's claims on the digits: trainings with BN at small batches, each evaluated by five kinds of statistics.

- Paper evalnorm, Table 1: normalization batches of 2, 4 and 8 images, the same SGD batch of 8 for all.
- Table 2 (d): the SGD batch is the normalization batch, and the learning rate follows it. One detector, trained from
  scratch with a batch of 8, initializes the weights and BN's statistics of every arm; both train.
- Figure 3: alpha and beta of each layer.

EN trains as BN does, to the bit, so that one training serves all its evaluations: EMA (alpha = beta = 0, BN's own),
1/B, 1/B^2, and alpha and beta estimated offline and online. All arms see the same images equally often.

    python tools/make_digits.py data/digits
    python tools/claims/evalnorm.py

A training that the results already hold is not run again: what was interrupted goes on, and what is complete is drawn.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

from matplotlib.container import BarContainer

# first of ours: it puts the checkout on the path
from common import RESULTS, ROOT, THREADS, read_results, silence, write_png
from mmnorm.report.plots import COLORS

CONFIG = ROOT / 'configs/faster_rcnn_en_r50_digits.py'
# Images per SGD batch and per normalization batch
ARMS = {f'sgd{sgd}_norm{size}': (sgd, size) for sgd, size in ((8, 2), (8, 4), (8, 8), (4, 4), (2, 2))}
INITIAL = 'sgd8_norm8'  # the batches that the network which all arms start from is trained with
# What alpha and beta are, by what the results call it
KINDS = dict(
    ema='EMA: 0, as BN', simple='1/B', rule='1/B\u00b2', offline='estimated offline', online='estimated online'
)
# The two sets of arms that are shown side by side
TABLES = {
    'SGD batch of 8 (as Table 1)': ('sgd8_norm2', 'sgd8_norm4', 'sgd8_norm8'),
    'SGD batch = normalization batch (as Table 2d)': ('sgd2_norm2', 'sgd4_norm4', 'sgd8_norm8'),
}
SETTINGS = 'initial_epochs', 'epochs', 'train_images', 'val_images', 'offline_batches'


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='N', help='default: 0 1 2')
    parser.add_argument(
        '--arms', nargs='+', choices=ARMS, default=list(ARMS), metavar='ARM', help='default: all of %(choices)s'
    )
    parser.add_argument('--data', default='data/digits', type=Path, metavar='DIR', help='default: %(default)s')
    parser.add_argument(
        '--out',
        default=RESULTS,
        type=Path,
        metavar='DIR',
        help='for evalnorm.json and its plots (default: tools/claims/results)',
    )
    parser.add_argument('--plot-only', action='store_true', help='draw what evalnorm.json in --out already holds')
    parser.add_argument(
        '--work-dir',
        default='work_dirs/claims/evalnorm',
        type=Path,
        metavar='DIR',
        help='for checkpoints (default: %(default)s)',
    )
    parser.add_argument(
        '--initial-epochs',
        type=int,
        default=4,
        metavar='N',
        help='of the network that all arms start from (default: %(default)s)',
    )
    parser.add_argument('--epochs', type=int, default=1, metavar='N', help='of each arm (default: %(default)s)')
    parser.add_argument('--train-images', type=int, metavar='N', help='default: all')
    parser.add_argument('--val-images', type=int, default=200, metavar='N', help='default: %(default)s')
    parser.add_argument(
        '--offline-batches',
        type=int,
        default=200,
        metavar='N',
        help='to estimate alpha and beta on (default: %(default)s)',
    )
    return parser.parse_args(argv)


def training_config(args, name, sgd, size, epochs, seed, **overrides):
    """The config of one training: of the detector's, only batch sizes, length and seed differ between arms."""
    from mmengine.config import Config

    cfg = Config.fromfile(CONFIG)
    coco = args.data / 'coco'
    cfg.merge_from_dict(
        dict(
            train_dataloader=dict(batch_size=sgd, dataset=dict(indices=args.train_images)),
            val_dataloader=dict(dataset=dict(indices=args.val_images)),
            val_evaluator=dict(ann_file=str(coco / 'annotations/instances_val2017.json')),
            train_cfg=dict(max_epochs=epochs, val_begin=epochs + 1),  # evaluations come after training
            randomness=dict(seed=seed),
            default_hooks=dict(checkpoint=dict(interval=epochs)),
            work_dir=str(args.work_dir / name),
            experiment_name=name,
            log_level='ERROR',
            **overrides,
        )
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(coco)
    if size < sgd:
        for part in (cfg.model.backbone, cfg.model.neck):
            part.norm_cfg.virtual_batch_size = size
    warmup, cosine = cfg.param_scheduler
    warmup.end = warmup.end * cfg.auto_scale_lr.base_batch_size // sgd  # as many images in each arm
    cosine.end = epochs
    return cfg


def initial_checkpoint(args):
    """Where the network that all arms start from is; the name says what it was trained on."""
    return (
        args.work_dir
        / f'initial_{args.initial_epochs}x{args.train_images or "all"}'
        / f'epoch_{args.initial_epochs}.pth'
    )


def train_initial(args):
    """Train the network that all arms start from, with plain BN; leaves its checkpoint and returns its metrics."""
    from mmnorm import engine

    cfg = training_config(args, initial_checkpoint(args).parent.name, *ARMS[INITIAL], args.initial_epochs, seed=0)
    for part in (cfg.model.backbone, cfg.model.neck):
        part.norm_cfg = dict(type='BN')
    runner = engine.Runner.from_cfg(cfg)
    runner.train()
    return metrics_of(runner)


def metrics_of(runner):
    """Evaluate; AP, AP50 and AP75 of boxes, in percent."""
    metrics = runner.val()
    return {
        name: round(100 * metrics[f'coco/bbox_{key}'], 2)
        for name, key in (('AP', 'mAP'), ('AP50', 'mAP_50'), ('AP75', 'mAP_75'))
    }


def run_training(args, arm, seed):
    """Train one arm and evaluate it in five ways.

    Returns:
        dict: The row of the results, AP in percent, alpha and beta by layer in the order of depth.
    """
    from mmnorm import engine, estimate_offline
    from mmnorm.norms.evalnorm import EN

    start = time.monotonic()
    sgd, size = ARMS[arm]
    cfg = training_config(
        args, f'{arm}_seed{seed}', sgd, size, args.epochs, seed, load_from=str(initial_checkpoint(args))
    )
    runner = engine.Runner.from_cfg(cfg)
    model = runner.train()
    train_seconds = time.monotonic() - start
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, EN)}
    online = {name: (layer.alpha.item(), layer.beta.item()) for name, layer in layers.items()}
    set_all(layers, 0)  # away from where the online estimation started, so that it cannot agree by standing still
    estimate_offline(model, training_batches(runner, size, seed, args.offline_batches), forward=extract_features)
    offline = {name: (layer.alpha.item(), layer.beta.item()) for name, layer in layers.items()}
    found = {}
    for kind, values in dict(ema=0, simple=1 / size, rule=1 / size**2, offline=offline, online=online).items():
        set_all(layers, values)
        found[kind] = metrics_of(runner)
    return dict(
        arm=arm,
        seed=seed,
        sgd_batch=sgd,
        norm_batch=size,
        learning_rate=runner.optim_wrapper.optimizer.param_groups[0]['initial_lr'],
        iterations=runner.iter,
        images_seen=runner.max_epochs * len(runner.train_dataloader.dataset),
        train_seconds=round(train_seconds, 1),
        seconds=round(time.monotonic() - start, 1),
        evaluations=found,
        layers={
            name: {
                kind: dict(zip(('alpha', 'beta'), values[name]))
                for kind, values in (('online', online), ('offline', offline))
            }
            for name in layers
        },
    )


def set_all(layers, values):
    """Set alpha and beta of EN layers: to one number, or to pairs by the layer's name."""
    for name, layer in layers.items():
        alpha, beta = values[name] if isinstance(values, dict) else (values, values)
        layer.alpha.fill_(alpha)
        layer.beta.fill_(beta)


def training_batches(runner, size, seed, number):
    """Batches of ``size`` training images, shuffled, as the loader gives them."""
    loader = runner.build_dataloader(
        dict(
            runner.cfg.train_dataloader,
            batch_size=size,
            batch_sampler=None,
            sampler=dict(type='InfiniteSampler', shuffle=True),
        ),
        seed=seed,
    )
    return itertools.islice(loader, number)


def extract_features(model, batch):
    """Run the part of a detector that has norms."""
    model.extract_feat(model.data_preprocessor(batch)['inputs'])


def read(args, path):
    """What the results hold already (:func:`common.read_results`)."""
    return read_results(path, args, SETTINGS, dict(initial=None, trainings=[]))


def mean_and_spread(values):
    """Mean and standard deviation over seeds; the latter is 0 for a single one."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def ap_over_seeds(trainings, arm, kind, over_ema=False):
    """Mean and spread of an arm's AP, or of what it has over EMA's of the same training; None before it has run."""
    aps = [
        row['evaluations'][kind]['AP'] - over_ema * row['evaluations']['ema']['AP']
        for row in trainings
        if row['arm'] == arm
    ]
    return mean_and_spread(aps) if aps else None


def print_table(trainings):
    """Print AP of EMA and what the other evaluations have over it, mean and standard deviation over seeds."""
    from tabulate import tabulate

    rows = []
    for arm in ARMS:
        if ap_over_seeds(trainings, arm, 'ema'):
            cells = [ap_over_seeds(trainings, arm, kind, over_ema=kind != 'ema') for kind in KINDS]
            rows.append(
                [
                    arm,
                    *(
                        '{:{}.1f} \u00b1 {:.1f}'.format(cell[0], '+' if kind != 'ema' else '', cell[1])
                        for kind, cell in zip(KINDS, cells)
                    ),
                ]
            )
    print(
        tabulate(
            rows, ['', 'AP of EMA', *(f'{kind} - EMA' for kind in list(KINDS)[1:])], 'github', disable_numparse=True
        )
    )


def draw_ap(figure, trainings):
    """Draw AP of EMA and EN by normalization batch, and what each evaluation has over EMA's of the same training."""
    colors = dict(zip(KINDS, ('#8a9099', *COLORS)))
    seeds = len({row['seed'] for row in trainings})
    grid = figure.subplots(2, len(TABLES), sharex=True, sharey='row', height_ratios=(2, 3))
    for (top, bottom), (title, arms) in zip(grid.T, TABLES.items()):
        for kind in ('ema', 'online'):
            top.errorbar(*points_of(trainings, arms, kind), fmt='o-', capsize=3, color=colors[kind])
        for place, kind in enumerate(list(KINDS)[1:]):
            x, means, spreads = points_of(trainings, arms, kind, over_ema=True)
            bottom.bar(
                [index + 0.2 * (place - 1.5) for index in x],
                means,
                0.18,
                yerr=spreads,
                capsize=2,
                ecolor='#4a5058',
                color=colors[kind],
            )
        top.set(title=title)
        bottom.axhline(0, color='#4a5058', linewidth=1)
        bottom.set(xlabel='normalization batch B, images')
        bottom.set_xticks(range(len(arms)), [str(ARMS[arm][1]) for arm in arms])
        for axes in (top, bottom):
            axes.grid(axis='x', visible=False)
    grid[0, 0].set(ylabel='box AP, %')
    grid[1, 0].set(ylabel='box AP over that of EMA, points')
    handles = [top.containers[0], *(bars for bars in bottom.containers if isinstance(bars, BarContainer))]
    figure.legend(
        handles,
        KINDS.values(),
        loc='outside upper left',
        ncols=len(KINDS),
        alignment='left',
        title=f'alpha and beta; means and standard deviations of {seeds} seed{"s" * (seeds > 1)}',
    )


def points_of(trainings, arms, kind, over_ema=False):
    """Index of each arm that has run, mean and spread of its AP; three lists."""
    cells = [(index, ap_over_seeds(trainings, arm, kind, over_ema)) for index, arm in enumerate(arms)]
    return [list(column) for column in zip(*((index, *cell) for index, cell in cells if cell))] or [[], [], []]


def draw_layers(figure, trainings):
    """Draw alpha and beta by layer (paper evalnorm, Figure 3), means over seeds."""
    names = list(trainings[0]['layers'])
    stages = [
        'FPN' if name.startswith('neck') else name.split('.')[1].replace('bn1', 'stem').removeprefix('layer')
        for name in names
    ]
    places = {stage: [index for index, other in enumerate(stages) if other == stage] for stage in stages}
    grid = figure.subplots(2, len(TABLES), sharex=True, sharey=True)
    for column, (title, arms) in zip(grid.T, TABLES.items()):
        for axes, symbol in zip(column, ('alpha', 'beta')):
            for arm, color in zip(arms, COLORS):
                rows = [row['layers'] for row in trainings if row['arm'] == arm]
                for kind, style in (('online', {}), ('offline', dict(alpha=0.45, linewidth=1))) if rows else ():
                    values = [statistics.mean(row[name][kind][symbol] for row in rows) for name in names]
                    axes.plot(values, color=color, label=f'B = {ARMS[arm][1]}, {KINDS[kind]}', **style)
            for indices in list(places.values())[1:]:
                axes.axvline(indices[0] - 0.5, color='#b8bec6', linewidth=0.8, zorder=0.5)
            axes.grid(axis='x', visible=False)
            axes.tick_params(axis='x', length=0)
            axes.set_xlim(-0.5, len(names) - 0.5)
        column[0].set(title=title)
        column[1].set_xticks([statistics.mean(indices) for indices in places.values()], list(places))
        column[1].set(xlabel='norm layers by depth; 1 to 4: stages')
    for axes, symbol in zip(grid[:, 0], ('alpha', 'beta')):
        axes.set(ylabel=symbol, ylim=(0, None))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc='outside upper left', ncols=3)


def draw(trainings, folder):
    """Write both plots to a folder."""
    write_png(folder / 'evalnorm.png', (9, 6.4), lambda figure: draw_ap(figure, trainings))
    write_png(folder / 'evalnorm_layers.png', (9, 5.4), lambda figure: draw_layers(figure, trainings))


def main():
    args = parse_args(sys.argv[1:])
    path = args.out / 'evalnorm.json'
    if args.plot_only:
        draw(json.loads(path.read_text())['trainings'], args.out)
        return
    import torch

    from mmnorm import engine
    from mmnorm.engine.preflight import problems
    from mmnorm.files import write_json

    warnings.simplefilter('ignore')
    torch.set_num_threads(THREADS)
    found = problems(training_config(args, INITIAL, *ARMS[INITIAL], args.epochs, seed=0), 1, ('train', 'val'))
    if found:
        engine.stop('\n\n'.join(found))
    args.out.mkdir(parents=True, exist_ok=True)
    results = read(args, path)
    there = {(row['arm'], row['seed']) for row in results['trainings']}
    pending = [(arm, seed) for seed, arm in itertools.product(args.seeds, args.arms) if (arm, seed) not in there]
    if pending and not (results['initial'] and initial_checkpoint(args).is_file()):
        with silence():
            results['initial'] = train_initial(args)
        write_json(path, results)
        print(f'the network that all arms start from: AP {results["initial"]["AP"]:.1f}', flush=True)
    for arm, seed in pending:
        with silence():
            row = run_training(args, arm, seed)
        results['trainings'].append(row)
        write_json(path, results)
        aps = ', '.join(f'{kind} {metrics["AP"]:.1f}' for kind, metrics in row['evaluations'].items())
        print(f'{arm}, seed {seed}, {row["seconds"]:.0f} s: AP {aps}', flush=True)
    print_table(results['trainings'])
    draw(results['trainings'], args.out)


if __name__ == '__main__':
    main()
