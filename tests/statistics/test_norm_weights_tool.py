"""tools/norm_weights.py: the page in a real browser, what hardening writes, and what it says after mistakes."""

import json
import math
import re

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from mmnorm.cli import run_command
from mmnorm.engine import networks, read_checkpoint
from mmnorm.engine.networks import build_network, read_config
from mmnorm.norms import SN, harden, ratios
from mmnorm.report.learned import finite, write_weights
from mmnorm.report.plots import COLORS
from mmnorm.statistics.learned import measure_spread, norm_weights
from tests.report.test_report_browser import BROWSER, browse, count_pixels

from .test_learned import CONTROLS, randomized

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::DeprecationWarning')

NETWORK = """
norm = dict(type={norm!r})
model = dict(
    type='FasterRCNN',
    backbone=dict(_delete_=True, type='ResNet', depth=18, base_channels=8, norm_cfg=norm, **_base_.scratch_norm),
    neck=dict(in_channels=[8, 16, 32, 64], norm_cfg=norm),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=16, fc_out_channels=16, norm_cfg=norm),
        mask_roi_extractor=None, mask_head=None))
val_evaluator.update(metric='bbox')
"""


@pytest.fixture
def main(monkeypatch):
    monkeypatch.setattr('os.register_at_fork', lambda **hooks: None)  # would outlive the test
    return lambda argv: run_command('weights', argv)


@pytest.fixture
def network(digits_config):
    """Write a config whose norms are of a type, and a checkpoint of it for each seed; return the paths."""

    def write(norm, *seeds, name='project.py'):
        config = digits_config(NETWORK.format(norm=norm), name=name)
        model = build_network(read_config(config))
        paths = []
        for seed in seeds:
            paths.append(config.with_name(f'{norm}_{seed}.pth'))
            state_dict = randomized(model, seed, CONTROLS).state_dict()
            torch.save(dict(meta=dict(epoch=seed), state_dict=state_dict), paths[-1])
        return [str(path) for path in (config, *paths)]

    return write


def network_of(config, checkpoint):
    model = build_network(read_config(config))
    model.load_state_dict(read_checkpoint(checkpoint)['state_dict'])
    return model


def test_sn_page_and_tables(main, network, tmp_path, capsys):
    config, *checkpoints = network('SN', 0, 1)
    assert main(['show', config, *checkpoints, '--out', str(tmp_path / 'out')]) == 0
    page = tmp_path / 'out/norm_weights.html'
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    content = json.loads(page.with_suffix('.json').read_text())
    assert content['spread'] is None and content['notes'] == []
    assert [snapshot['name'] for snapshot in content['snapshots']] == ['SN_0', 'SN_1']
    for snapshot, checkpoint in zip(content['snapshots'], checkpoints):
        expected = norm_weights(network_of(config, checkpoint))
        for row, known in zip(snapshot['sn'], expected['sn'], strict=True):
            assert (row['name'], row['mean'], row['var'], row['kl']) == tuple(
                known[key] for key in ('name', 'mean', 'var', 'kl')
            )
        assert snapshot['sn_by_part'] == expected['sn_by_part']
    rows = {row['name']: row for row in content['snapshots'][0]['sn']}
    assert rows['backbone.bn1']['receptive_field'] == 7 and rows['backbone.bn1']['field_bin'] == 'up to 49'
    assert rows['roi_head.bbox_head.shared_convs.0.bn']['field_bin'] == 'not defined'
    assert rows['neck.lateral_convs.3.bn']['receptive_field'] == 435  # ResNet-18's last stage
    assert content['snapshots'][0]['sn_by_field']['over 427']['layers'] == 6
    parts = content['snapshots'][0]['sn_by_part']
    text = page.read_text()
    for heading in ('Ratios by layer', 'Averages', 'Hard ratios', 'Ratios over the training'):
        assert f'<h2>{heading}</h2>' in text
    assert 'RBN' not in text and '<script' not in text and 'src="http' not in text and 'nan' not in text
    if BROWSER is None:
        pytest.skip('no Chromium or Chrome on PATH')
    dom = browse(page, tmp_path / 'profile', '--dump-dom')
    assert '<title>Norm weights: SN_1</title>' in dom and dom.count('alt="Plot: ') == 1 + 2 * 2 + 1 + len(parts)
    screenshot = tmp_path / 'page.png'
    browse(page, tmp_path / 'profile', f'--screenshot={screenshot}', '--window-size=1280,3500')
    picture = np.asarray(Image.open(screenshot).convert('RGB')).astype(int)
    for color in COLORS[:3]:  # IN, LN and BN
        assert count_pixels(picture, [int(color[at : at + 2], 16) for at in (1, 3, 5)]) > 20000


def test_rbn_page_with_spread(main, network, tmp_path):
    config, checkpoint = network('RBN', 0)
    assert main(['show', config, checkpoint, '--spread']) == 0
    content = json.loads((tmp_path / 'norm_weights.json').read_text())  # beside the checkpoint
    model = network_of(config, checkpoint)
    assert [row['name'] for row in content['snapshots'][0]['rbn']] == [
        row['name'] for row in norm_weights(model)['rbn']
    ]
    images = []
    handle = model.backbone.register_forward_pre_hook(lambda layer, args: images.append(args[0]))
    for batch in Runner.build_dataloader(read_config(config).test_dataloader):
        with torch.no_grad():
            model.eval().test_step(batch)
    handle.remove()
    expected = measure_spread(model, images, lambda m, x: m.backbone(x), ['backbone.layer2.0.bn2'])
    for stage, values in expected['backbone.layer2.0.bn2'].items():
        assert content['spread']['backbone.layer2.0.bn2'][stage] == pytest.approx(values.tolist(), rel=1e-5)
    text = (tmp_path / 'norm_weights.html').read_text()
    assert '<h2>Spread around the scaling calibration</h2>' in text and text.count('alt="Plot: ') == 1 + 1 + 6
    assert 'Ratios' not in text


def test_page_of_hardened_grouped_and_few_layers(tmp_path):
    model = randomized(torch.nn.Sequential(SN(4, groups=2), SN(4), SN(4, batch_stat=False)), seed=2)
    harden(model)
    tables = norm_weights(model, {'1': math.inf})
    assert any(math.isinf(row['kl']) for row in tables['sn'])
    content = dict(
        config='a<b>.py',
        versions=dict(torch='2'),
        notes=['<script>alert(1)</script>'],
        spread=None,
        snapshots=[dict(name='hard & fast', **tables)],
    )
    page = write_weights(content, tmp_path)
    text = page.read_text()
    assert '∞' in text and '<script' not in text and 'a&lt;b&gt;.py' in text and 'hard &amp; fast' in text
    rows = json.loads(page.with_suffix('.json').read_text())['snapshots'][0]['sn']  # strict JSON, without Infinity
    assert [row['kl'] for row in rows] == [finite(row['kl']) for row in tables['sn']]
    assert rows[1]['receptive_field'] is None and rows[1]['field_bin'] == 'whole image'


def test_page_of_layers_that_whiten(main, network, tmp_path):
    config, *checkpoints = network('SW', 0, 1)
    assert main(['show', config, *checkpoints]) == 0
    content = json.loads((tmp_path / 'norm_weights.json').read_text())
    for snapshot, checkpoint in zip(content['snapshots'], checkpoints, strict=True):
        expected = norm_weights(network_of(config, checkpoint))
        assert snapshot['sw_by_part'] == expected['sw_by_part'] and snapshot['members']['sw'] == ['BW', 'IW']
        assert [row['var'] for row in snapshot['sw']] == [row['var'] for row in expected['sw']]
    text = (tmp_path / 'norm_weights.html').read_text()
    for heading in ('Ratios by layer', 'Averages', 'What each SW layer prefers', 'Ratios over the training'):
        assert f'<h2>{heading}</h2>' in text
    assert '<th>BW</th><th>IW</th><th>BW</th><th>IW</th>' in text and '<th>LN</th>' not in text
    assert text.count('alt="Plot: ') == 1 + 2 * 2 + 1 + len(content['snapshots'][0]['sw_by_part'])
    assert re.search(r'SW: on average the layers take the mean from \d+ % BW, \d+ % IW, the variance', text)
    assert 'harden' not in text


def test_a_checkpoint_without_the_weights_of_sw_is_refused(main, network, tmp_path, capsys):
    (config,) = network('SW')
    model = build_network(read_config(config))
    kept = {key: value for key, value in model.state_dict().items() if 'sw_' not in key}
    torch.save(dict(state_dict=kept), tmp_path / 'bn.pth')
    assert main(['show', config, str(tmp_path / 'bn.pth')]) == 2
    assert 'of the config learn; first: backbone.bn1.sw_mean_weight' in capsys.readouterr().err


def test_harden_writes_a_network_that_computes_the_argmax(main, network, tmp_path, capsys):
    config, checkpoint = network('SN', 0)
    out = tmp_path / 'new/hard.pth'
    assert main(['harden', config, checkpoint, str(out)]) == 0
    said = capsys.readouterr().out
    assert str(out.with_suffix('.py')) in said and 'layers hardened' in said
    assert sorted(path.name for path in out.parent.iterdir()) == ['checkpoints.sha256', 'hard.pth', 'hard.py']
    hard_config = read_config(out.with_suffix('.py'))
    assert hard_config.load_from == str(out)
    hard, soft = network_of(out.with_suffix('.py'), out), network_of(config, checkpoint)
    picks = harden(soft)
    assert all(m.hard for m in hard.modules() if isinstance(m, SN))
    assert read_checkpoint(out)['meta']['mmnorm']['picks'] == {name: list(pick) for name, pick in picks.items()}
    for name, of_layer in ratios(hard).items():
        assert all(torch.equal(values, ratios(soft)[name][moment]) for moment, values in of_layer.items())
    x = torch.rand(1, 3, 64, 64)
    for model in (hard, soft):
        model.eval()
    with torch.no_grad():
        for ours, theirs in zip(hard.extract_feat(x), soft.extract_feat(x)):
            torch.testing.assert_close(ours, theirs)
    # nothing is overwritten, the input least of all
    before = out.read_bytes()
    assert main(['harden', config, checkpoint, str(out)]) == 2
    assert main(['harden', config, checkpoint, checkpoint]) == 2
    assert 'exists already' in capsys.readouterr().err and out.read_bytes() == before


def test_spread_names_the_missing_test_set(main, network, capsys):
    config, checkpoint = network('RBN', 0)
    with open(config, 'a') as file:
        file.write("test_dataloader = dict(dataset=dict(data_root='nowhere/'))\n")
    assert main(['show', config, checkpoint, '--spread']) == 2
    assert 'nowhere/annotations/instances_val2017.json is missing' in capsys.readouterr().err


def test_untrained_ratios_are_warned_about(main, network, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(networks, 'print_log', lambda message, *_: said.append(message))
    (config,) = network('SN')
    checkpoint = tmp_path / 'untrained.pth'
    torch.save(dict(state_dict=build_network(read_config(config)).state_dict()), checkpoint)
    assert main(['harden', config, str(checkpoint), str(tmp_path / 'hard.pth')]) == 0
    assert read_checkpoint(tmp_path / 'hard.pth')['meta']['mmnorm']['picks']['backbone.bn1'] == [['IN'], ['IN']]
    assert len(said) == 1 and 'prefer no normalizer, as before training; first: backbone.bn1.' in said[0]


@pytest.mark.e2e
def test_hardened_network_is_fine_tuned_by_the_training_tool(network, forked_tool, tmp_path):
    config, checkpoint = network('SN', 0)
    out = tmp_path / 'hard.pth'
    done = forked_tool('norm_weights.py', 'harden', config, checkpoint, out)
    assert done.returncode == 0, done.stdout
    done = forked_tool(
        'train.py',
        out.with_suffix('.py'),
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=2',
        'train_dataloader.dataset.indices=2',
    )
    assert done.returncode == 0 and f'Load checkpoint from {out}' in done.stdout, done.stdout[-3000:]
    assert 'norms of the model: ' in done.stdout  # which every training says
    before, after = read_checkpoint(out)['state_dict'], read_checkpoint(tmp_path / 'work/epoch_1.pth')['state_dict']
    assert before.keys() == after.keys()
    for key, value in after.items():
        if key.endswith(('mean_weight', 'var_weight')):
            assert torch.equal(value, before[key])  # hard ratios are no parameters
    assert not torch.equal(after['backbone.layer1.0.conv1.weight'], before['backbone.layer1.0.conv1.weight'])
