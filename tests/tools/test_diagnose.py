"""tools/diagnose.py and tools/bn_statistics.py as a user calls them, on small data and an untrained network."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmnorm.norms import EN

SMALL = """
model = dict(backbone=dict(depth=50, base_channels=8, xbn=dict(norm_cfg=dict(type='GN', num_groups=8))),
             neck=dict(in_channels=[32, 64, 128, 256]))
"""
FIXED = (
    SMALL
    + """
model['backbone'].update(norm_eval=True)
"""
)
# Detections, of which without a training only many hit something
MANY = """
model.update(test_cfg=dict(rpn=dict(max_per_img=200), rcnn=dict(max_per_img=100)))
"""
WITHOUT_BN = (
    SMALL
    + """
model['backbone']['xbn'].update(scope='full')
"""
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def checkpoint_of(config, path):
    """A checkpoint of a config's network, with statistics as if it had been trained."""
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    state = model.state_dict()
    for key, value in state.items():
        if key.endswith('running_var'):
            value.uniform_(0.5, 2)
        elif key.endswith('running_mean'):
            value.normal_()
    torch.save(dict(meta=dict(epoch=1), state_dict=state, optimizer={}), path)
    return path


def statistics_of(path):
    return {key: value for key, value in torch.load(path, weights_only=True)['state_dict'].items() if 'running' in key}


def test_diagnose_and_apply(forked_tool, digits_config, tmp_path):
    config = digits_config(SMALL + MANY)
    checkpoint = checkpoint_of(config, tmp_path / 'k.pth')
    before = checkpoint.read_bytes()
    done = forked_tool('diagnose.py', config, checkpoint, '--batches', '3', '--out', 'out', '--apply', 'evalnorm_rule')
    assert done.returncode == 0, done.stdout
    assert checkpoint.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'checkpoints.sha256',
        'diagnosis.html',
        'diagnosis.json',
        'k_evalnorm_rule.pth',
        'k_evalnorm_rule.py',
    ]
    found = json.loads((tmp_path / 'out/diagnosis.json').read_text())
    assert found['metrics'].keys() == {'as it is', 'recollect', 'evalnorm_offline', 'evalnorm_rule'}
    assert len(found['layers']) == 1 + 37 and all(layer['by_batch'] for layer in found['layers'][1:])
    assert {layer['batch_size'] for layer in found['evalnorm'].values()} == {2}
    assert found['recommendation']['sentence'] in done.stdout
    assert found['recommendation']['verdict'] == 'none' and 'by 4 test images a gain cannot be' in done.stdout
    assert found['confidence']['images'] == 4 and found['confidence']['intervals'].keys() == found['metrics'].keys() - {
        'as it is'
    }
    assert all(
        of.keys() == found['headline']['as it is'].keys() and min(of.values()) >= 0
        for of in found['confidence']['intervals'].values()
    )
    # the written config builds what the written checkpoint fits
    cfg = Config.fromfile(tmp_path / 'out/k_evalnorm_rule.py')
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(tmp_path / 'out/k_evalnorm_rule.pth', weights_only=True)['state_dict'])
    layers = [layer for layer in model.modules() if isinstance(layer, EN)]
    assert len(layers) == 37 and all(float(layer.alpha) == 0.25 for layer in layers)
    again = forked_tool('diagnose.py', config, checkpoint, '--out', 'out', '--apply', 'evalnorm_rule')
    assert again.returncode == 2 and 'exists already and is not overwritten' in again.stdout
    tested = forked_tool('test.py', tmp_path / 'out/k_evalnorm_rule.py', tmp_path / 'out/k_evalnorm_rule.pth')
    assert tested.returncode == 0, tested.stdout
    evaluation = json.loads((tmp_path / 'work_dirs/k_evalnorm_rule/evaluation.json').read_text())
    assert evaluation['metrics']['coco/bbox_mAP'] == found['metrics']['evalnorm_rule']['coco/bbox_mAP'] > 0


def test_norm_eval_has_no_repair(forked_tool, digits_config, tmp_path):
    config = digits_config(FIXED)
    checkpoint = checkpoint_of(config, tmp_path / 'k.pth')
    done = forked_tool('diagnose.py', config, checkpoint, '--batches', '2', '--apply')
    assert done.returncode == 0 and 'Nothing was applied, as no repair is recommended.' in done.stdout, done.stdout
    assert (tmp_path / 'work_dirs/project/diagnosis/diagnosis.html').is_file()
    found = json.loads((tmp_path / 'work_dirs/project/diagnosis/diagnosis.json').read_text())
    assert list(found['metrics']) == ['as it is'] and found['recommendation']['repair'] is None
    assert 'EvalNorm has no batch size' in found['recommendation']['finding']
    assert not any(layer['by_batch'] for layer in found['layers'])
    refused = forked_tool('bn_statistics.py', 'recollect', config, checkpoint, '--out', 'r.pth')
    assert refused.returncode == 2 and 'would change the function that was trained' in refused.stdout
    assert 'Traceback' not in refused.stdout and not (tmp_path / 'r.pth').exists()


def test_two_processes_recollect_and_measure_what_one_does(tool, forked_tool, digits_config, tmp_path):
    """Evaluation of the same images by one and by two processes; recollection from as many of them."""
    config = digits_config(SMALL + 'train_dataloader.update(batch_size=1, sampler=dict(shuffle=False))')
    checkpoint = checkpoint_of(config, tmp_path / 'k.pth')
    for done in (
        forked_tool('bn_statistics.py', 'shift', config, checkpoint, '--out', '1.json'),
        tool('dist_bn_statistics.sh', 'shift', config, checkpoint, 2, '--out', '2.json'),
    ):
        assert done.returncode == 0, done.stdout
    one, two = (json.loads((tmp_path / f'{processes}.json').read_text())['layers'] for processes in (1, 2))
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert two[name].pop('calls') == values.pop('calls') == []  # no layer is called twice
        assert two[name] == pytest.approx(values, rel=1e-4)
    done = forked_tool('bn_statistics.py', 'recollect', config, checkpoint, '--out', 'r.pth', '--batches', '2', ranks=2)
    assert done.returncode == 0, done.stdout
    old, new = statistics_of(checkpoint), statistics_of(tmp_path / 'r.pth')
    assert old.keys() == new.keys() and not any(torch.equal(old[key], value) for key, value in new.items())


def test_perturb(forked_tool, digits_config, tmp_path):
    config = digits_config(SMALL)
    checkpoint = checkpoint_of(config, tmp_path / 'k.pth')
    done = forked_tool(
        'bn_statistics.py',
        'perturb',
        config,
        checkpoint,
        '--blocks',
        '1',
        '6',
        '--deltas',
        '0',
        '0.5',
        '--noises',
        '2',
        '--out',
        'p.json',
    )
    assert done.returncode == 0, done.stdout
    curves = json.loads((tmp_path / 'p.json').read_text())['curves']
    assert [(c['blocks'], c['delta'], len(c['metrics'])) for c in curves] == [
        (1, 0, 1),
        (1, 0.5, 2),
        (6, 0, 1),
        (6, 0.5, 2),
    ]
    assert (tmp_path / 'p.svg').read_text().startswith('<?xml')
