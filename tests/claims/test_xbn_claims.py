"""The scripts behind xbn's claims at small scale: tools/claims/estimation_shift.py and perturbation.py."""

import json
import math
import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('sklearn')
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools/claims'))

import estimation_shift as shift  # noqa: E402
import perturbation  # noqa: E402

import common  # noqa: E402
from mmnorm.statistics import first_norms, measure_shift, perturbed  # noqa: E402


@pytest.fixture(scope='module')
def digits():
    return common.load_digits()


def test_the_digits_are_all_there_and_not_standardised(digits):
    images, labels = digits
    assert images.shape == (1797, 1, 8, 8) and labels.bincount().min() > 170
    assert images.min() == 0 and images.max() == 1


def test_measured_shift_is_that_of_definition_2(digits):
    images, labels = digits
    torch.manual_seed(0)
    network = shift.build_network(shift.Experiment('', layers=3), 64)
    network.train()(images[:64].flatten(1))
    found = measure_shift(network, [images.flatten(1)])
    x = images.flatten(1)
    network.eval()
    assert list(found) == ['norm1', 'norm2', 'norm3']
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm1d):
            mean, deviation = x.double().mean(0), x.double().std(0, correction=0)
            mu, sigma = (module.running_mean - mean).norm(), (module.running_var.sqrt() - deviation).norm()
            assert found[name].esm_mu == pytest.approx(mu.item(), rel=1e-5)
            assert found[name].esm_sigma == pytest.approx(sigma.item(), rel=1e-5)
        with torch.no_grad():
            x = module(x)


def test_no_shift_if_estimates_are_those_of_the_same_network_on_the_test_set(digits):
    images, labels = digits
    frozen = shift.Experiment('', lr=0.0, alpha=1.0, layers=4, iterations=2)
    found = shift.run(frozen, 0, images, labels)
    assert found['layers'] == [1, 2, 3, 4] and found['measured'] == [1, 2]
    assert found['input_sigma'] == pytest.approx(0, abs=1e-5)
    # what is left is Bessel's correction of torch's running variance
    torch.manual_seed(0)
    first = shift.build_network(frozen, 64).linear1(images.flatten(1)).detach()
    bessel = math.sqrt(len(images) / (len(images) - 1)) - 1
    assert found['esm_mu'][-1][0] < 1e-5
    assert found['esm_sigma'][-1][0] == pytest.approx(bessel * first.std(0, correction=0).norm().item(), rel=1e-2)
    assert max(found['esm_sigma'][-1] + found['esm_mu'][-1]) < 0.02
    assert found['test_error'] == pytest.approx(found['train_error'], abs=0.2)
    learning = shift.run(shift.Experiment('', alpha=1.0, layers=4, iterations=2), 0, images, labels)
    assert learning['esm_mu'][-1][0] > 1e-3  # estimates are of the network before the step


def test_shift_accumulates_with_bn_and_gn_blocks_it(digits):
    """Section 4.2.1 and 4.2.2, on fewer layers and iterations."""
    results = {
        norm: shift.summarize(experiment, [shift.run(experiment, seed, *digits) for seed in (0, 1)])
        for norm in ('BN', 'GNBN')
        for experiment in [shift.Experiment('', norm=norm, train_size=32, layers=8, iterations=20)]
    }
    bn, gnbn = results['BN'], results['GNBN']
    assert bn['layers'] == list(range(1, 9)) and gnbn['layers'] == list(range(2, 9, 2))
    assert bn['train_error_end']['mean'] == gnbn['train_error_end']['mean'] == 0
    assert bn['growth_end']['mean'] > 2 > gnbn['growth_end']['mean']
    assert bn['esm_sigma_end']['mean'][-1] > 2 * gnbn['esm_sigma_end']['mean'][-1]
    assert bn['test_error_end']['mean'] > gnbn['test_error_end']['mean']


def test_layer_0_is_the_shift_of_the_input(digits):
    images, labels = digits
    experiment = shift.Experiment('', train_size=32, layers=4, iterations=1)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))[:32]
    x = images.flatten(1)
    expected = (x[chosen].std(0, correction=0) - x.std(0, correction=0)).norm().item()
    assert shift.run(experiment, 3, images, labels)['input_sigma'] == pytest.approx(expected, rel=1e-4)


def test_the_networks_are_the_papers():
    mlp = shift.build_network(shift.EXPERIMENTS['fig4'], 64)
    assert [type(mlp[3 * index + 1]).__name__ for index in range(20)] == ['GroupNorm', 'BatchNorm1d'] * 10
    assert mlp.norm1.num_groups == 4 and mlp.norm2.momentum == 0.9 and mlp.linear20.weight.shape == (128, 128)
    cnn = shift.build_network(shift.EXPERIMENTS['a5'], 1)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in cnn) == 14
    assert cnn(torch.rand(2, 1, 8, 8)).shape == (2, 10) and cnn[:-3](torch.rand(2, 1, 8, 8)).shape == (2, 64, 2, 2)


@pytest.mark.parametrize('size, layers, blocks', [(32, 53, 16), (224, 29, 8)])
def test_arms_differ_only_in_the_second_norm_of_the_blocks(size, layers, blocks):
    kinds = {}
    for arm in perturbation.ARMS:
        norms = {
            name: module
            for name, module in perturbation.build_classifier(arm, perturbation.SIZES[size]).named_modules()
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d))
        }
        kinds[arm] = {name: type(module).__name__ for name, module in norms.items()}
        if arm == 'XBN-GN':  # as many channels in a group as ResNet-50's 64 to 512 in the paper's 64 groups
            in_groups = [norms[f'backbone.layer{stage}.0.bn2'] for stage in (1, 2, 3, 4)]
            assert [norm.num_channels / norm.num_groups for norm in in_groups] == [1, 2, 4, 8]
    assert set(kinds['BN'].values()) == {'BatchNorm2d'} and len(kinds['BN']) == layers
    for arm, kind in {'XBN-GN': 'GroupNorm', 'XBN-IN': 'InstanceNorm2d'}.items():
        changed = {name for name in kinds['BN'] if kinds[arm][name] != 'BatchNorm2d'}
        assert changed == {name for name in kinds['BN'] if name.endswith('.bn2')} and len(changed) == blocks
        assert {kinds[arm][name] for name in changed} == {kind}


def test_noise_of_magnitude_0_changes_nothing_and_statistics_come_back():
    setting = replace(perturbation.SIZES[32], recipe=perturbation.SIZES[32].recipe | dict(epochs=2))
    images, labels, test_images, test_labels = (values[:96] for values in perturbation.load_data(setting))
    model = perturbation.train('BN', setting, 0, images, labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = perturbation.accuracy(model, test_images, test_labels)
    found = perturbation.accuracy_under_noise(model, 13, [0.0, 1.0], 2, test_images, test_labels)
    assert found[0] == plain
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        logits = model(test_images)
        with perturbed(first_norms(model.backbone, 13).values(), 1.0):
            assert (model(test_images) - logits).abs().max() > 1e-2


def test_training_and_test_digits_are_disjoint(digits):
    images, labels, test_images, test_labels = perturbation.load_data(perturbation.SIZES[32])
    assert (len(labels), len(test_labels)) == (1000, 797)
    assert images.shape == (1000, 1, 32, 32)
    assert torch.equal(torch.cat([labels, test_labels]).bincount(), digits[1].bincount())


def test_a_digit_of_half_the_side_lies_somewhere_on_a_noisy_image(digits):
    setting = replace(perturbation.SIZES[224], noise=0.0, train_images=40, test_images=8)
    images, labels, test_images, test_labels = perturbation.load_data(setting)
    assert images.shape == (40, 1, 224, 224) and test_images.shape == (8, 1, 224, 224)
    corners = set()
    for image in images:
        rows, columns = (image[0].sum(dim).nonzero().flatten() for dim in (1, 0))
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) < 112
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) == 40
    noisy = perturbation.load_data(replace(setting, noise=0.3))
    assert torch.equal(noisy[1], labels) and (noisy[0] - images).std().item() == pytest.approx(0.3, rel=0.01)


def test_maps_of_224_pixels_are_as_large_as_the_papers():
    setting = perturbation.SIZES[224]
    backbone = perturbation.build_classifier('XBN-IN', setting).backbone
    sides = []
    for name, module in backbone.named_modules():
        if name.endswith('.bn2'):
            module.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    with torch.no_grad():
        backbone(torch.rand(1, 1, 224, 224))
    assert sides == [56, 56, 28, 28, 14, 14, 7, 7]


def test_what_the_results_hold_is_not_run_again_and_other_settings_are_refused(tmp_path):
    command = ['--tiny', '--seeds', '1', '--sizes', '32', '--out', str(tmp_path)]
    setting = perturbation.SIZES[32].tiny()
    path, args = tmp_path / 'perturbation.json', perturbation.parse_args(command)
    kept = dict(arm='BN', seed=1, seconds=1.0, accuracy={str(number): [50.0, 40.0] for number in setting.blocks})
    common.record(path, lambda: perturbation.read(args, setting), 'rows', kept)
    perturbation.main(command)
    content = json.loads(path.read_text())
    assert [row['arm'] for row in content['rows']] == ['BN', 'XBN-GN', 'XBN-IN'] and content['rows'][0] == kept
    assert content['results']['BN']['6']['drop'] == dict(mean=[0.0, 10.0], std=[0.0, 0.0])
    with pytest.raises(SystemExit, match='was made with'):
        perturbation.main([*command, '--seeds', '2'])


def rounded(mean, std):
    digits = 0 if std >= 10 else 1
    return f'{mean:.{digits}f} ± {std:.{digits}f}'


@pytest.mark.parametrize('place, size', list(enumerate(perturbation.SIZES)))
def test_the_page_tells_what_the_results_of_perturbation_hold(place, size):
    setting = perturbation.SIZES[size]
    content = json.loads((common.RESULTS / f'{setting.name}.json').read_text())
    section = (common.ROOT / 'tools/claims/README.md').read_text().split('## Noise on BN')[1].split('\n## ')[0]
    part = section.split('### ')[place + 1]
    assert part.startswith(f'{size} pixels') and f'results/{setting.name}.png' in part
    for arm, by_blocks in content['results'].items():
        values = next(iter(by_blocks.values()))['accuracy']
        assert f'{arm} {rounded(values["mean"][0], values["std"][0])}' in ' '.join(part.split())
    rows = re.findall(r'^\| (\d+) blocks? \| (\S+) \| (.*) \|$', part, re.MULTILINE)
    assert {int(blocks) for blocks, _, _ in rows} == setting.blocks.keys()
    for blocks, delta, cells in rows:
        index = setting.deltas.index(float(delta))
        values = [content['results'][arm][blocks]['accuracy'] for arm in perturbation.ARMS]
        assert cells.split(' | ') == [rounded(value['mean'][index], value['std'][index]) for value in values]


@pytest.mark.parametrize('size', perturbation.SIZES)
def test_the_committed_results_of_perturbation_are_those_of_its_settings(size):
    setting = perturbation.SIZES[size]
    content = json.loads((common.RESULTS / f'{setting.name}.json').read_text())
    seeds = content['about']['seeds']
    assert len(seeds) >= 3
    expected = dict(vars(setting), seeds=seeds)
    assert content['about']['settings'] == {name: expected[name] for name in perturbation.SETTINGS}
    if content['rows']:
        assert {(row['arm'], row['seed']) for row in content['rows']} == set(product(perturbation.ARMS, seeds))
        assert content['results'] == perturbation.summarize_rows(setting, content['rows'])


@pytest.mark.parametrize(
    'script, plots',
    [
        (shift, {'estimation_shift_setup_one.png', 'estimation_shift_appendix.png', 'estimation_shift_setup_two.png'}),
        (perturbation, {'perturbation.png', 'perturbation_224.png'}),
    ],
    ids=['estimation_shift', 'perturbation'],
)
def test_scripts_write_results_and_plots_and_draw_them_again(script, plots, tmp_path):
    script.main(['--tiny', '--seeds', '0', '--out', str(tmp_path)])
    first = {path: path.read_text() for path in tmp_path.glob('*.json')}
    for text in first.values():
        about = json.loads(text)['about']
        assert about['seeds'] == [0] and about['versions']['torch'] == torch.__version__ and about['device']
        assert about['command'].startswith(f'python tools/claims/{script.NAME}.py')
    assert {file.name for file in tmp_path.iterdir()} == plots | {path.name for path in first}
    assert first.keys() >= {tmp_path / f'{script.NAME}.json'}
    drawn = {name: (tmp_path / name).read_bytes() for name in plots}
    for name in plots:
        (tmp_path / name).unlink()
    script.main(['--plot-only', '--out', str(tmp_path)])
    assert drawn == {name: (tmp_path / name).read_bytes() for name in plots}
    assert first == {path: path.read_text() for path in tmp_path.glob('*.json')}


def test_the_same_seed_gives_the_same_figures(digits):
    experiment = shift.Experiment('', norm='GNBN', train_size=128, layers=4, iterations=3)
    assert shift.run(experiment, 1, *digits) == shift.run(experiment, 1, *digits)
    assert shift.run(experiment, 1, *digits)['esm_mu'] != shift.run(experiment, 2, *digits)['esm_mu']


def test_numbers_are_rounded_and_lists_of_them_take_a_line(tmp_path):
    assert common.mean_and_std([[1.0, 12345.0], [2.0, 12345.0]]) == dict(mean=[1.5, 12340.0], std=[0.7071, 0.0])
    assert common.mean_and_std([3.14159]) == dict(mean=3.142, std=0.0)
    content = dict(a=[1, 2.5], b=[[1], [2, 3]], c=['x, y', 'z'], d=[])
    common.write_results(tmp_path / 'x.json', content)
    text = (tmp_path / 'x.json').read_text()
    assert json.loads(text) == content and '"a": [1, 2.5]' in text and '[2, 3]' in text
