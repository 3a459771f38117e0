"""tools/claims/pretraining.py on next to nothing: what is trained, from which weights, what is recorded and drawn."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mmnorm.data import CLASSIFICATION, DigitsOptions, make_digits
from mmnorm.engine import read_checkpoint

pytest.importorskip('mmpretrain', reason='pretraining needs mmpretrain')
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools/claims'))

import pretraining as script  # noqa: E402

SMALL = ('--seeds', '5', '--pretrain-epochs', '1', '--epochs', '1', '--train-images', '8', '--val-images', '4')


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp('classes')
    make_digits(root, DigitsOptions(**CLASSIFICATION | dict(num_train=70, num_val=10)))
    return root


@pytest.mark.e2e
def test_a_seed_is_pretrained_fine_tuned_recorded_and_drawn_once(forked_tool, digits, classes, tmp_path):
    def run():
        return forked_tool(
            'claims/pretraining.py', '--data', digits, '--classes', classes, '--out', 'results', '--work-dir', 'work',
            '--arms', 'xbn_frozen', *SMALL,
        )  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stdout
    path = tmp_path / 'results/pretraining.json'
    found = json.loads(path.read_text())
    assert found['about']['settings'] == dict(pretrain_epochs=1, train_images=8, epochs=1, val_images=4)
    (pretraining,), (training,) = found['pretrainings'], found['trainings']
    assert (pretraining['arm'], pretraining['seed'], pretraining['images_seen']) == ('xbn', 5, 70)
    assert (training['arm'], training['seed'], training['images_seen']) == ('xbn_frozen', 5, 8)
    assert set(pretraining['metrics']) == {'top-1'} and set(training['metrics']) == {'AP^bbox', 'AP^mask'}
    assert (tmp_path / 'results/pretraining.png').read_bytes().startswith(b'\x89PNG')

    # the detector began with the published backbone: what is frozen in it is still that
    published = torch.load(tmp_path / 'work/resnet50_xbn_digits_seed5.pth', weights_only=True)['state_dict']
    tuned = read_checkpoint(tmp_path / 'work/xbn_frozen_seed5/epoch_1.pth')['state_dict']
    frozen = [key for key in published if key.startswith(('conv1', 'layer1')) and 'conv' in key]
    assert frozen and all(torch.equal(published[key], tuned[f'backbone.{key}']) for key in frozen)

    again = run()
    assert again.returncode == 0 and 'seed 5' not in again.stdout
    assert json.loads(path.read_text()) == found


def test_arms_differ_in_the_backbone_alone(digits, classes):
    args = script.parse_args(['--data', str(digits), '--classes', str(classes)])

    def shared(cfg, *own):
        cfg = cfg.to_dict()
        for key in ('work_dir', 'experiment_name', *own):
            cfg.pop(key)
        backbone = cfg['model'].pop('backbone')
        return cfg, backbone

    detectors = {arm: shared(script.detector_config(args, arm, 0)) for arm in script.ARMS}
    (first, _), *others = detectors.values()
    assert all(cfg == first for cfg, _ in others)
    kinds = {arm: (backbone['type'], backbone['norm_cfg']['type']) for arm, (_, backbone) in detectors.items()}
    assert kinds == dict(
        bn_frozen=('ResNet', 'FrozenBN'), xbn_frozen=('XBNResNet', 'FrozenBN'), xbn_scratch=('XBNResNet', 'BN')
    )
    assert detectors['xbn_scratch'][1]['init_cfg'] is None
    classifiers = [shared(script.classifier_config(args, norm, 0)) for norm in script.CLASSIFIERS]
    assert classifiers[0][0] == classifiers[1][0]
    assert {backbone['type'] for _, backbone in classifiers} == {'ResNet', 'XBNResNet'}


def test_the_results_that_the_page_tells_of_are_complete():
    results = json.loads((ROOT / 'tools/claims/results/pretraining.json').read_text())
    seeds = results['about']['seeds']
    assert len(seeds) >= 3
    for kind, arms in (('pretrainings', script.CLASSIFIERS), ('trainings', script.ARMS)):
        assert {(row['arm'], row['seed']) for row in results[kind]} == {(arm, seed) for arm in arms for seed in seeds}
    page = (ROOT / 'tools/claims/README.md').read_text()
    for arm in script.ARMS:
        for metric in script.METRICS:
            assert '{mean:.1f} ± {std:.1f}'.format(**script.over_seeds(results['trainings'], arm, metric)) in page
