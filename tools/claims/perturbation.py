#!/usr/bin/env python
"""Noise on BN's running statistics harms XBN blocks less than BN's (paper xbn, Eq. 5, Figures 8 and A9).

A narrow ResNet of the paper's blocks classifies scikit-learn's scanned digits instead of ImageNet. Three arms, trained
alike: BN, and XBN blocks with GN or with IN in place of each block's second BN. Then noise of magnitude 0 to 1 disturbs
the statistics of the first BN of the network's first blocks.

- 32 pixels: ResNet-50 at a quarter of its width; the first 1, 6 and 13 blocks disturbed, as in the paper.
- 224 pixels: half as many blocks at an eighth of the width, on maps as large as the paper's; the first 1, 3 and 6
  blocks disturbed, which are as large a part of the network.

Writes perturbation.json, perturbation_224.json and a plot of each. What the results already hold is not run again: what
was interrupted goes on.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.backbones.resnet import Bottleneck

# first of ours: it puts the checkout on the path
from common import (
    Classifier,
    accuracy,
    add_common_arguments,
    begin,
    fit,
    init_weights,
    is_recorded,
    load_digits,
    mean_and_std,
    place_digits,
    read_results,
    record,
    run_seeds,
    significant,
    write_png,
    write_results,
)
from mmnorm.openmmlab.mmdet_models import XBNResNet
from mmnorm.report.plots import line_style
from mmnorm.statistics import first_norms, perturbed

NAME = 'perturbation'
SEEDS = 3
NOISE_SEEDS = 5  # as in the paper
SPLIT_SEED = 0  # the same digits, places and noise for all
# As many channels in a group as the paper's 64 groups have: one in stage 1 (GN is IN there) to eight
ARMS = {
    'BN': lambda width: None,
    'XBN-GN': lambda width: dict(type='GN', num_groups=width),
    'XBN-IN': lambda width: dict(type='IN', affine=True),
}
SETTINGS = (
    'seeds', 'side', 'digit', 'noise', 'backbone', 'train_images', 'test_images', 'noise_seeds', 'deltas', 'recipe',
)  # fmt: skip
DEPTHS = ResNet.arch_settings | {26: (Bottleneck, (2, 2, 2, 2))}


class PlainResNet(ResNet):
    """mmdet's, in these depths too."""

    arch_settings = DEPTHS


class BlockedResNet(XBNResNet):
    """With XBN blocks."""

    arch_settings = DEPTHS


@dataclass(frozen=True)
class Setting:
    """What is trained and disturbed at a size of images.

    Attributes:
        name: Of its results.
        side: Of images, in pixels.
        digit: Side of the digit in it, by bilinear interpolation from 8; a smaller one lies anywhere.
        noise: Standard deviation of the noise around and over the digit, on gray values from 0 to 1.
        backbone: Arguments of the ResNet; ``base_channels`` is the number of GN's groups too.
        blocks: How many of the first blocks are disturbed, and the figure of the paper that has that part of them.
        train_images, test_images: How many.
        deltas: Noise magnitudes, 0 first.
        noise_seeds: Draws of the noise.
        recipe: Of :func:`common.fit`.
    """

    name: str
    side: int
    digit: int
    noise: float
    backbone: dict
    blocks: dict
    train_images: int
    test_images: int
    deltas: list
    recipe: dict
    noise_seeds: int = NOISE_SEEDS

    def tiny(self):
        """The same in seconds."""
        return replace(
            self,
            train_images=64,
            test_images=64,
            deltas=[0.0, 1.0],
            noise_seeds=1,
            recipe=self.recipe | dict(epochs=1),
        )


SIZES = {
    # the last stage keeps the size of the one before it: 2 x 2 pixels, since IN needs more than one
    32: Setting(
        name=NAME,
        side=32,
        digit=32,
        noise=0,
        backbone=dict(depth=50, base_channels=16, strides=[1, 2, 2, 1]),
        blocks={1: 'Figure A9 (a)', 6: 'Figure 8', 13: 'Figure A9 (c)'},
        train_images=1000,
        test_images=797,
        deltas=[step / 10 for step in range(11)],
        recipe=dict(lr=0.05, momentum=0.9, weight_decay=1e-4, batch_size=32, epochs=12),
    ),
    # a digit of 224 pixels would be smooth at the scale of every kernel: one of half the side, under noise, is not
    224: Setting(
        name=f'{NAME}_224',
        side=224,
        digit=112,
        noise=0.3,
        backbone=dict(depth=26, base_channels=8, stem_channels=8),
        blocks={1: 'Figure A9 (a)', 3: 'Figure 8', 6: 'Figure A9 (c)'},
        train_images=800,
        test_images=200,
        deltas=[step / 5 for step in range(6)],
        recipe=dict(lr=0.1, momentum=0.9, weight_decay=1e-4, batch_size=32, epochs=10),
    ),
}


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, NAME, SEEDS)
    parser.add_argument(
        '--sizes', nargs='+', type=int, choices=SIZES, default=list(SIZES), help='in pixels; default: all'
    )
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='seeds at a time (default: %(default)s)')
    return parser.parse_args(argv)


def build_classifier(arm, setting):
    """The ResNet of a setting with BN, or with an arm's batch-free norm in its XBN blocks."""
    options = dict(in_channels=1, out_indices=(3,), norm_eval=False, zero_init_residual=False, **setting.backbone)
    norm_cfg = ARMS[arm](setting.backbone['base_channels'])
    backbone = BlockedResNet(xbn=dict(norm_cfg=norm_cfg), **options) if norm_cfg else PlainResNet(**options)
    init_weights(backbone)
    return Classifier(backbone).to(memory_format=torch.channels_last)  # a third faster on a CPU


def load_data(setting):
    """Return training images and labels, test images and labels; images are (N, 1, side, side)."""
    digits, labels = load_digits()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(digits), generator=generator)[: setting.train_images + setting.test_images]
    images = place_digits(digits[order], setting.side, setting.digit, setting.noise, generator)
    labels, size = labels[order], setting.train_images
    return images[:size], labels[:size], images[size:], labels[size:]


def train(arm, setting, seed, images, labels):
    """Train a classifier by the setting's recipe; the seed is that of initialization and order of images."""
    torch.manual_seed(seed)
    model = build_classifier(arm, setting)
    fit(model, images, labels, **setting.recipe)
    return model


def accuracy_under_noise(model, blocks, deltas, noise_seeds, images, labels):
    """Accuracy for each noise magnitude with the first BN of the first blocks disturbed (Eq. 5).

    Args:
        model (Classifier): Trained.
        blocks (int): How many blocks are disturbed.
        deltas (list[float]): Noise magnitudes.
        noise_seeds (int): The accuracy is the mean over so many draws of the noise.
        images (Tensor): (N, 1, H, W).
        labels (Tensor): (N, ).

    Returns:
        list[float]: In percent.
    """
    layers = first_norms(model.backbone, blocks).values()
    found = []
    for delta in deltas:
        draws = []
        for seed in range(noise_seeds if delta else 1):
            with perturbed(layers, delta, seed):
                draws.append(accuracy(model, images, labels))
        found.append(float(np.mean(draws)))
    return found


def summarize(values):
    """Aggregate accuracies (networks, deltas); the first delta is 0.

    Returns:
        dict: Mean and deviation over networks of ``accuracy``, and of ``drop``: what noise takes from it.
    """
    values = np.array(values)
    return dict(accuracy=mean_and_std(values), drop=mean_and_std(values[:, :1] - values))


def summarize_rows(setting, rows):
    """By arm and number of disturbed blocks, what :func:`summarize` returns."""
    return {
        arm: {
            str(number): summarize([row['accuracy'][str(number)] for row in rows if row['arm'] == arm])
            for number in setting.blocks
        }
        for arm in ARMS
    }


def path_of(args, setting):
    """The JSON file of a setting (Path)."""
    return args.out / f'{setting.name}.json'


def read(args, setting):
    """What a setting's results hold already (:func:`common.read_results`): rows by arm and seed; when all are there,
    their summary by arm and number of disturbed blocks."""
    plan = argparse.Namespace(**vars(setting), seeds=args.seeds)
    return read_results(path_of(args, setting), plan, SETTINGS, dict(rows=[], results={}), NAME)


def run_seed(args, seed, settings):
    """Train and disturb what the results of settings lack of a seed."""
    for setting in settings:
        images, labels, *test = load_data(setting)
        for arm in ARMS:
            if is_recorded(read(args, setting)['rows'], arm, seed):
                continue
            start = time.process_time()
            model = train(arm, setting, seed, images, labels)
            found = {
                str(number): significant(
                    accuracy_under_noise(model, number, setting.deltas, setting.noise_seeds, *test)
                )
                for number in setting.blocks
            }
            row = dict(arm=arm, seed=seed, seconds=round(time.process_time() - start, 1), accuracy=found)
            record(path_of(args, setting), partial(read, args, setting), 'rows', row)
            print(f'{setting.name}: {arm}, seed {seed}, {row["seconds"]:.0f} s: {found}', flush=True)


def run(args, settings):
    """Run what the results of settings lack, and summarize them."""
    # before minutes: whether it goes on there. A summary is all there is of 32 pixels.
    settings = [setting for setting in settings if not read(args, setting)['results']]
    run_seeds(args, run_seed, settings)
    for setting in settings:
        content = read(args, setting)
        write_results(path_of(args, setting), content | dict(results=summarize_rows(setting, content['rows'])))


def draw(content, setting, figure):
    """One panel for each number of disturbed blocks: accuracy over noise magnitude, a curve for each arm."""
    deltas = content['about']['settings']['deltas']
    grid = figure.subplots(1, len(setting.blocks), sharey=True)
    for axes, (number, paper) in zip(grid, setting.blocks.items()):
        for index, (arm, by_blocks) in enumerate(content['results'].items()):
            values = by_blocks[str(number)]['accuracy']
            mean, std = np.array(values['mean']), np.array(values['std'])
            style = line_style(index, len(content['results']))
            axes.fill_between(
                deltas, mean - std, np.minimum(mean + std, 100), color=style['color'], alpha=0.15, linewidth=0
            )
            axes.plot(deltas, mean, marker='o', markersize=3.5, label=arm, **style)
        noun = 'block' if number == 1 else f'{number} blocks'
        axes.set(title=f'First {noun} disturbed\n{paper}', xlabel='Noise magnitude Δ', xlim=(0, 1), ylim=(0, 100))
    grid[0].set_ylabel('Test accuracy (%)')
    figure.legend(*grid[0].get_legend_handles_labels(), loc='outside upper left', ncols=len(content['results']))


def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv)
    begin(args, NAME)
    settings = [SIZES[size].tiny() if args.tiny else SIZES[size] for size in args.sizes]
    if not args.plot_only:
        run(args, settings)
    for setting in settings:
        path = path_of(args, setting)
        content = json.loads(path.read_text())
        about = content['about']
        note = (
            f'ResNet-{setting.backbone["depth"]} on digits, {setting.side} pixels; mean over '
            f'{len(about["seeds"])} networks and {about["settings"]["noise_seeds"]} draws of the noise; '
            'band: standard deviation over networks'
        )
        write_png(path.with_suffix('.png'), (10.8, 3.9), partial(draw, content, setting), note)
        print(f'{path}, {path.with_suffix(".png")}')


if __name__ == '__main__':
    main()
