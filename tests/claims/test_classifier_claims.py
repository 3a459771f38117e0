"""tools/claims/classifiers.py on next to nothing: what is trained, how ratios are fixed, what is recorded and drawn."""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

pytest.importorskip('sklearn')
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools/claims'))

import classifiers as script  # noqa: E402

from mmnorm.norms import BGN, RBN, SN, SSN  # noqa: E402


@pytest.fixture(scope='module')
def data():
    return script.load_data(64)


def arguments(*more):
    return script.parse_args(['--tiny', '--seeds', '7', *more])


def test_digits_of_training_and_test_are_other_ones_and_the_same_for_all(data):
    images, labels, test_images, test_labels = data
    assert images.shape == (64, 1, 32, 32) and test_images.shape == (797, 1, 32, 32)
    assert test_labels.bincount(minlength=10).min() > 50
    again = script.load_data(1000)
    assert torch.equal(again[0][:64], images) and torch.equal(again[2], test_images)
    distances = torch.cdist(again[0].flatten(1), test_images.flatten(1))
    assert distances.min() > 1


def test_norms_are_where_an_arm_says():
    def places(claim, name, kind):
        arm = script.CLAIMS[claim][name]
        model = script.build_classifier(arm.norm, arm.stage)
        return {place.split('.')[1] for place, layer in model.named_modules() if type(layer) is kind}

    everywhere = {'bn1', 'layer1', 'layer2', 'layer3', 'layer4'}
    assert places('rbn', 'RBN', RBN) == places('sn', 'SN, batch 2', SN) == everywhere
    assert places('rbn', 'RBN in stage 3', RBN) == {'layer3'}
    assert places('bgn', 'BGN, batch 32', BGN) == places('bgn', 'BGN, 512 groups, batch 2', BGN) == everywhere


@pytest.mark.e2e
def test_hard_ratios_are_those_that_training_ended_with(tmp_path):
    def run():
        script.main(['--tiny', '--seeds', '7', '--claims', 'hard', '--out', str(tmp_path)])
        return json.loads((tmp_path / 'classifiers.json').read_text())

    found = run()
    assert found['about']['settings'] == dict(epochs=1, tuning_epochs=1, train_images=128)
    rows = {row['arm']: row for row in found['hard']}
    assert list(rows) == sorted(script.CLAIMS['hard'])
    assert (tmp_path / 'classifiers_hard.png').read_bytes().startswith(b'\x89PNG')
    metrics = {arm: row['metrics'] for arm, row in rows.items()}
    assert all(0 <= of_arm['accuracy'] <= 100 for of_arm in metrics.values())
    tuned, scratch = (metrics[f'SN, hard {when}'] for when in ('after training', 'from scratch'))
    for key in (f'{scope} in {what}' for scope in script.SCOPES for what in ('mean', 'var')):
        assert tuned[key] == scratch[key]
        for arm in (tuned, metrics['SSN']):  # so many layers of 20 have it alone
            assert 20 * arm[key] == pytest.approx(round(20 * arm[key]))
    assert metrics['SN']['BN in var'] not in (0, 1)
    assert run() == found


def test_what_two_claims_have_in_common_is_trained_once(tmp_path, monkeypatch):
    trained = []

    def train_arm(arm, seed, *_):
        trained.append((repr(arm), seed))
        return None, dict(accuracy=50.0)

    monkeypatch.setattr(script, 'train_arm', train_arm)
    args = arguments('--claims', 'sn', 'bgn', '--out', str(tmp_path))
    path = script.begin(args, script.NAME)
    script.run_seed(args, 7, path)
    assert len(trained) == len(set(trained)) == 12 + 24 - 8  # BN and GN at 2, 8 and 32; BGN by its rule at 2 and 128
    assert [len(script.read(args, path)[claim]) for claim in args.claims] == [12, 24]


def test_an_arm_trains_alike_from_the_same_seed(data):
    arm = script.CLAIMS['sn']['SN, batch 32']
    first, again, other = (script.train_arm(arm, seed, data, arguments()) for seed in (7, 7, 8))
    assert first[1] == again[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), again[0].parameters()))
    assert not torch.equal(first[0].fc.weight, other[0].fc.weight)


def test_sparse_ratios_grow_to_their_end_before_fine_tuning(data):
    seen = []
    model = script.build_classifier(script.CLAIMS['hard']['SSN'].norm, 0)
    script.fit(model, *data[:2], 0.1, 32, 2, before_step=seen.append)
    assert seen == pytest.approx([0, 1 / 3, 2 / 3, 1])
    trained, _ = script.train_arm(script.CLAIMS['hard']['SSN'], 7, data, arguments())
    assert all(layer.picks for layer in trained.modules() if isinstance(layer, SSN))


def test_the_results_that_the_page_tells_of_are_complete():
    results = json.loads((ROOT / 'tools/claims/results/classifiers.json').read_text())
    seeds = results['about']['seeds']
    assert len(seeds) >= 3
    page = (ROOT / 'tools/claims/README.md').read_text().split('## Norms in classification')[1].split('\n## ')[0]
    shares = [f'{scope} in {what}' for scope in script.SCOPES for what in ('mean', 'var')]
    sections = dict(zip(script.CLAIMS, page.split('\n### ')[1:]))
    for claim, arms in script.CLAIMS.items():
        rows = results[claim]
        assert {(row['arm'], row['seed']) for row in rows} == {(arm, seed) for arm in arms for seed in seeds}
        for arm in arms:
            for metric in ['accuracy', *(shares if claim == 'sn' and arm.startswith('SN') else ())]:
                values = [row['metrics'][metric] for row in rows if row['arm'] == arm]
                digits = 1 if metric == 'accuracy' else 3
                assert f'{mean(values):.{digits}f} ± {stdev(values):.{digits}f}' in sections[claim]
