"""tools/claims/detectors.py on next to nothing: what is trained, which learning rate is taken, what is recorded."""

import json
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest

from mmnorm.blocks import list_norms

pytest.importorskip('sklearn')
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools/claims'))

import detectors as script  # noqa: E402

from mmnorm.engine.networks import build_network  # noqa: E402
from mmnorm.report.race import FINISHED, costs_of, table_of  # noqa: E402


@pytest.fixture
def args(digits, tmp_path):
    return script.parse_args(
        ['--data', str(digits), '--out', str(tmp_path), '--work-dir', str(tmp_path / 'work'), '--seeds', '5', '6']
    )


def test_arms_of_a_batch_size_differ_in_norm_and_learning_rate_alone(args):
    def shared(norm, rate):
        cfg = script.config_of_training(args, norm, 4, rate, 5).to_dict()
        rate = cfg['optim_wrapper']['optimizer'].pop('lr')
        for key in ('work_dir', 'experiment_name'):
            cfg.pop(key)
        backbone = cfg['model'].pop('backbone')
        return cfg, rate, backbone['type'], backbone['norm_cfg']['type']

    (first, usual, *kinds), *others = (shared(*arm) for arm in (('BN', 1), ('GN', 2), ('XBN', 0.5)))
    assert all(cfg == first for cfg, *_ in others)
    assert [rate / usual for _, rate, *_ in others] == [2, 0.5]
    assert [kinds, *(other for _, _, *other in others)] == [['ResNet', 'BN'], ['ResNet', 'GN'], ['XBNResNet', 'BN']]
    assert first['train_dataloader']['batch_size'] == 4


def test_steps_and_learning_rate_follow_the_batch_size(args):
    small, large = (script.config_of_training(args, 'BN', size, 1, 5) for size in (2, 8))
    assert small.train_cfg.max_epochs == large.train_cfg.max_epochs == 2
    assert small.optim_wrapper.optimizer.lr == pytest.approx(large.optim_wrapper.optimizer.lr / 4)
    assert (small.param_scheduler[0].end, large.param_scheduler[0].end) == (200, 50)


def test_sn_is_in_all_parts(args):
    network = build_network(script.config_of_training(args, 'SN', 2, 1, 5))
    layers = list_norms(network)
    assert {layer.type for layer in layers} == {'SN'}
    found = Counter(part for layer in layers for part in script.PARTS if part in layer.name.split('.'))
    assert found == dict(backbone=53, neck=8, bbox_head=4, mask_head=4)
    shares = script.shares(network)
    assert len(shares) == 4 * 2 * 3 and set(shares.values()) == {0.3333}


def test_the_best_rate_of_the_first_seed_is_taken_for_all(args, tmp_path, monkeypatch):
    trained = []
    best = {'BN': 2, 'GN': 0.5, 'XBN': 1}

    def train(_, norm, size, rate, seed):
        trained.append((norm, size, rate, seed))
        found = {'AP^bbox': 20.0 + (best.get(norm) == rate) - 9 * (seed == 6), 'AP^mask': 10.0}
        if norm == 'SN':
            found |= {
                f'{scope} in {what} of {part}': 0.3
                for scope in script.SCOPES
                for what in ('mean', 'var')
                for part in script.PARTS.values()
            }
        return dict(arm=script.arm_of(norm, size, rate), seed=seed, seconds=1.0, metrics=found)

    monkeypatch.setattr(script, 'train', train)
    monkeypatch.setattr(script, 'run_all', lambda jobs, run, calls: [run(*call) for call in calls])
    command = ['--data', str(args.data), '--out', str(tmp_path), '--work-dir', str(args.work_dir), '--seeds', '5', '6']
    script.main(command)
    assert len(trained) == len(set(trained)) == 27 + 9 + 6
    second = {(norm, rate) for norm, _, rate, seed in trained if seed == 6 and norm != 'SN'}
    assert second == set(best.items())
    for claim in script.CLAIMS:
        assert (tmp_path / f'detectors_{claim}.png').read_bytes().startswith(b'\x89PNG')
    script.main(command)
    assert len(trained) == 42


@pytest.mark.e2e
def test_detectors_are_trained_and_recorded(forked_tool, digits, tmp_path):
    done = forked_tool(
        'claims/detectors.py', '--tiny', '--claims', 'sn', '--seeds', '5', '--data', digits, '--out', 'results',
        '--work-dir', 'work',
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    rows = json.loads((tmp_path / 'results/detectors.json').read_text())['trainings']
    assert [(row['arm'], row['iterations']) for row in rows] == [
        ('SN, batch 2, rate x 1', 4),
        ('SN, batch 4, rate x 1', 2),
        ('SN, batch 8, rate x 1', 1),
    ]
    assert [row['learning_rate'] for row in rows] == pytest.approx([5e-4, 1e-3, 2e-3])
    for row in rows:
        assert set(script.METRICS) <= set(row['metrics'])
        for part in script.PARTS.values():
            of_part = [row['metrics'][f'{scope} in mean of {part}'] for scope in script.SCOPES]  # four digits each
            assert sum(of_part) == pytest.approx(1, abs=2e-4)


def test_the_results_that_the_page_tells_of_are_complete():
    results = json.loads((ROOT / 'tools/claims/results/detectors.json').read_text())
    first, *others = seeds = results['about']['seeds']
    assert len(seeds) >= 3
    rows = {(row['arm'], row['seed']): row['metrics'] for row in results['trainings']}
    best = script.best_arms(results)
    places = [(norm, size) for norm in script.NORMS for size in script.SIZES]
    tried = {script.arm_of(*place, rate) for place in places for rate in script.RATES}
    with_sn = {script.arm_of(script.SN_EVERYWHERE, size) for size in script.SIZES}
    assert {arm for arm, seed in rows if seed == first} == tried | with_sn
    for seed in others:
        assert {arm for arm, of in rows if of == seed} == set(best.values()) | with_sn

    def told(arm, metric, digits):
        values = [rows[arm, seed][metric] for seed in seeds]
        return f'{mean(values):.{digits}f} ± {stdev(values):.{digits}f}'

    page = (ROOT / 'tools/claims/README.md').read_text().split('## Detectors from scratch')[1].split('\n## ')[0]
    xbn, sn = page.split('\n### ')[1:]
    for place in places:
        rates = ', '.join(f'{rate:.1f}' for rate in script.tried(results, *place).values())
        for figure in (rates, *(told(best[place], metric, 1) for metric in script.METRICS)):
            assert figure in xbn
    for arm in with_sn:
        for metric in rows[arm, first]:
            assert told(arm, metric, 1 if metric in script.METRICS else 3) in sn


def test_readme_tells_what_the_race_came_to():
    race = json.loads((ROOT / 'tools/claims/results/race.json').read_text())
    section = (ROOT / 'README.md').read_text().split("The digits' Mask R-CNN from scratch")[1].split('\n## ')[0]
    assert f'`{race["command"]}`, {race["date"][:10]}' in section
    rows = pd.DataFrame(race['starts'])
    assert set(rows['state']) == {FINISHED}
    tables = [table_of(rows, metric) for metric in script.METRICS]
    cells = {}
    for cost in costs_of(rows):
        norm, size = cost['norm'], cost['batch_size']
        cells.setdefault(norm, []).extend(table.at[norm, size].rstrip('*') for table in tables)
        cells[norm] += [f'{cost["milliseconds"]:.0f} ms', f'{cost["memory"]:,.0f}']
    for norm, row in cells.items():
        assert f'| {norm} | {" | ".join(row)} |' in section
