#!/usr/bin/env python
"""Noise on BN's running statistics harms XBN blocks less than BN's (paper xbn, Eq. 5, Figures 8 and A9).

The paper's ResNet-50 (base_channels=16: a quarter of its width) classifies scikit-learn's scanned digits instead of
ImageNet: 1,000 to train on, 797 to test on. Three arms, trained alike: BN, and XBN blocks with GN or with IN in place
of each block's second BN. Then noise of magnitude 0 to 1 disturbs the statistics of the first BN of the first 1
(Figure A9 a), 6 (Figures 8 and A9 b) and 13 blocks (Figure A9 c).

Writes perturbation.json and perturbation.png.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from mmdet.models.backbones import ResNet
from torch import nn
from torch.nn.functional import interpolate

# first of ours: it puts the checkout on the path
from common import (
    accuracy,
    add_common_arguments,
    begin,
    fit,
    header,
    init_weights,
    load_digits,
    mean_and_std,
    write_png,
    write_results,
)
from mmnorm.openmmlab.mmdet_models import XBNResNet
from mmnorm.report.plots import line_style
from mmnorm.statistics import first_norms, perturbed

NAME = 'perturbation'
SEEDS = 3
NOISE_SEEDS = 5  # as in the paper
DELTAS = [step / 10 for step in range(11)]
# At a quarter of the width 16 groups have as many channels as the paper's 64: one in stage 1 (GN is IN there) to eight
ARMS = {'BN': None, 'XBN-GN': dict(type='GN', num_groups=16), 'XBN-IN': dict(type='IN', affine=True)}
BLOCKS = {1: 'Figure A9 (a)', 6: 'Figure 8', 13: 'Figure A9 (c)'}
TRAIN_SIZE = 1000
IMAGE_SIZE = 32  # pixels, by bilinear interpolation from 8
SPLIT_SEED = 0  # the same training and test digits for all
RECIPE = dict(lr=0.05, momentum=0.9, weight_decay=1e-4, batch_size=32, epochs=12)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, NAME, SEEDS)
    return parser.parse_args(argv)


class Classifier(nn.Module):
    """A backbone, global average pooling and a linear layer: (N, 1, H, W) to logits (N, 10)."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.feat_dim, 10)

    def forward(self, x):
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


def build_classifier(norm_cfg):
    """ResNet-50 with BN (None) or with a batch-free norm in its XBN blocks."""
    # the last stage keeps the size of the one before it: 2 x 2 pixels, since IN needs more than one
    options = dict(
        depth=50,
        in_channels=1,
        base_channels=16,
        strides=(1, 2, 2, 1),
        out_indices=(3,),
        norm_eval=False,
        zero_init_residual=False,
    )
    backbone = ResNet(**options) if norm_cfg is None else XBNResNet(xbn=dict(norm_cfg=norm_cfg), **options)
    init_weights(backbone)
    return Classifier(backbone).to(memory_format=torch.channels_last)  # a third faster on a CPU


def load_data():
    """Return training images and labels, test images and labels; images are (N, 1, 32, 32)."""
    images, labels = load_digits()
    images = interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode='bilinear')
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    train, test = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
    return images[train], labels[train], images[test], labels[test]


def train(norm_cfg, seed, images, labels, **recipe):
    """Train a classifier by a recipe of :func:`common.fit`; the seed is that of initialization and order of images."""
    torch.manual_seed(seed)
    model = build_classifier(norm_cfg)
    fit(model, images, labels, **recipe)
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


def run(seeds, deltas, noise_seeds, recipe, data, blocks=tuple(BLOCKS)):
    """Train all arms and disturb them.

    Args:
        seeds (list[int]): One network of each arm for each.
        deltas (list[float]): Noise magnitudes, 0 first.
        noise_seeds (int): Draws of the noise.
        recipe (dict): Of :func:`train`.
        data (tuple[Tensor]): As :func:`load_data` returns it.
        blocks (iterable[int]): How many blocks are disturbed.

    Returns:
        dict: By arm and number of blocks, what :func:`summarize` returns.
    """
    images, labels, *test = data
    results = {}
    for arm, norm_cfg in ARMS.items():
        start = time.perf_counter()
        found = {number: [] for number in blocks}
        for seed in seeds:
            model = train(norm_cfg, seed, images, labels, **recipe)
            for number in blocks:
                found[number].append(accuracy_under_noise(model, number, deltas, noise_seeds, *test))
        results[arm] = {str(number): summarize(values) for number, values in found.items()}
        print(f'{arm:7} accuracy by noise magnitude, {time.perf_counter() - start:.0f} s')
        for number, values in results[arm].items():
            print(f'{number:>3} blocks  {values["accuracy"]["mean"]}', flush=True)
    return results


def draw(content, figure):
    """One panel for each number of disturbed blocks: accuracy over noise magnitude, a curve for each arm."""
    deltas = content['deltas']
    grid = figure.subplots(1, len(BLOCKS), sharey=True)
    for axes, (number, paper) in zip(grid, BLOCKS.items()):
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
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    path = begin(args, NAME)
    if not args.plot_only:
        deltas, noise_seeds, recipe, data = DELTAS, NOISE_SEEDS, RECIPE, load_data()
        if args.tiny:
            deltas, noise_seeds, recipe = [0.0, 1.0], 1, RECIPE | dict(epochs=1)
            data = [values[:64] for values in data]
        results = run(args.seeds, deltas, noise_seeds, recipe, data)
        write_results(
            path,
            dict(
                about=header(NAME, argv, args.seeds),
                recipe=recipe,
                noise_seeds=noise_seeds,
                deltas=deltas,
                results=results,
            ),
        )
    content = json.loads(path.read_text())
    note = (
        f'ResNet-50 on digits; mean over {len(content["about"]["seeds"])} networks and {content["noise_seeds"]} '
        'draws of the noise; band: standard deviation over networks'
    )
    write_png(path.with_suffix('.png'), (10.8, 3.9), lambda figure: draw(content, figure), note)
    print(f'{path}, {path.with_suffix(".png")}')


if __name__ == '__main__':
    main()
