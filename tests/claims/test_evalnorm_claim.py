import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools/claims'))

import evalnorm as script  # noqa: E402

SMALL = (
    '--arms',
    'sgd2_norm2',
    '--seeds',
    '5',
    '--initial-epochs',
    '1',
    '--epochs',
    '1',
    '--train-images',
    '16',
    '--val-images',
    '4',
    '--offline-batches',
    '6',
)
PLOTS = 'evalnorm.png', 'evalnorm_layers.png'


def run(forked_tool, digits, *arguments):
    return forked_tool('claims/evalnorm.py', '--data', digits, '--out', 'results', *arguments)


@pytest.mark.e2e
def test_a_training_is_evaluated_in_all_ways_recorded_and_drawn_once(forked_tool, digits, tmp_path):
    done = run(forked_tool, digits, *SMALL)
    assert done.returncode == 0, done.stdout
    assert 'that all arms start from' in done.stdout and 'sgd2_norm2, seed 5' in done.stdout
    path = tmp_path / 'results/evalnorm.json'
    found = json.loads(path.read_text())
    assert found['about']['settings'] == dict(
        initial_epochs=1, epochs=1, train_images=16, val_images=4, offline_batches=6
    )
    (row,) = found['trainings']
    assert set(found['initial']) == {'AP', 'AP50', 'AP75'}
    assert (row['arm'], row['seed'], row['sgd_batch'], row['norm_batch']) == ('sgd2_norm2', 5, 2, 2)
    assert (row['iterations'], row['images_seen']) == (8, 16)
    assert row['learning_rate'] == pytest.approx(2e-3 * 2 / 8)
    assert set(row['evaluations']) == {'ema', 'simple', 'rule', 'offline', 'online'}
    assert all(set(metrics) == {'AP', 'AP50', 'AP75'} for metrics in row['evaluations'].values())
    assert len(row['layers']) == 53 + 8  # ResNet-50 and FPN
    assert list(row['layers'])[:2] == ['backbone.bn1', 'backbone.layer1.0.bn1']
    for kind, start in (('online', 1 / 4), ('offline', 0)):
        for symbol in ('alpha', 'beta'):
            values = [layer[kind][symbol] for layer in row['layers'].values()]
            assert all(0 <= value <= 1 for value in values)
            assert sum(abs(value - start) > 0.01 for value in values) > 40  # estimated, and not as it started
    drawn = {name: (tmp_path / 'results' / name).read_bytes() for name in PLOTS}
    assert all(picture.startswith(b'\x89PNG') for picture in drawn.values())

    again = run(forked_tool, digits, *SMALL)
    assert again.returncode == 0 and 'seed 5' not in again.stdout
    assert json.loads(path.read_text()) == found

    for name in PLOTS:
        (tmp_path / 'results' / name).unlink()
    assert forked_tool('claims/evalnorm.py', '--out', 'results', '--plot-only').returncode == 0
    assert drawn == {name: (tmp_path / 'results' / name).read_bytes() for name in PLOTS}


def test_missing_data_set_is_told(forked_tool, tmp_path):
    done = run(forked_tool, tmp_path / 'gone', *SMALL)
    assert done.returncode == 1 and 'makes the embedded data set' in done.stdout and 'Traceback' not in done.stdout


def test_results_of_other_settings_are_not_mixed(tmp_path):
    args = script.parse_args(SMALL)
    results = script.read(args, tmp_path / 'evalnorm.json')
    assert results['trainings'] == [] and results['initial'] is None
    (tmp_path / 'evalnorm.json').write_text(json.dumps(results))
    assert script.read(args, tmp_path / 'evalnorm.json') == results
    args.epochs = 3
    with pytest.raises(SystemExit, match='Give another --out'):
        script.read(args, tmp_path / 'evalnorm.json')


def test_spreads_are_of_what_a_training_has_over_its_own_ema():
    trainings = [
        dict(arm='sgd2_norm2', seed=seed, evaluations=dict(ema=dict(AP=ema), rule=dict(AP=ema + 1)))
        for seed, ema in enumerate((20.0, 30.0, 40.0))
    ]
    assert script.ap_over_seeds(trainings, 'sgd2_norm2', 'rule') == (31.0, 10.0)
    assert script.ap_over_seeds(trainings, 'sgd2_norm2', 'rule', over_ema=True) == (1.0, 0.0)
    assert script.ap_over_seeds(trainings[:1], 'sgd2_norm2', 'ema') == (20.0, 0.0)
    assert script.ap_over_seeds(trainings, 'sgd8_norm8', 'ema') is None


def test_arms_differ_only_in_their_batches(digits):
    def flat(tree, path=()):
        if isinstance(tree, (dict, list, tuple)):
            items = tree.items() if isinstance(tree, dict) else enumerate(tree)
            return {key: value for name, branch in items for key, value in flat(branch, (*path, name)).items()}
        return {path: tree}

    args = script.parse_args(['--data', str(digits)])
    configs = {
        arm: flat(script.training_config(args, arm, *batches, epochs=1, seed=0).to_dict())
        for arm, batches in script.ARMS.items()
    }
    norms = {('model', part, 'norm_cfg', 'virtual_batch_size') for part in ('backbone', 'neck')}
    warmup, batch = ('param_scheduler', 0, 'end'), ('train_dataloader', 'batch_size')
    for arm, (sgd, size) in script.ARMS.items():
        config = configs[arm]
        different = {
            key
            for key in config.keys() | configs['sgd8_norm8'].keys()
            if config.get(key) != configs['sgd8_norm8'].get(key)
        }
        assert different <= norms | {warmup, batch, ('work_dir',), ('experiment_name',)}
        assert config[batch] == sgd and all(config.get(norm, sgd) == size for norm in norms)
        assert config[warmup] * sgd == 800
    assert configs['sgd8_norm8']['auto_scale_lr', 'enable']
