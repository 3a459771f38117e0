"""A search for the learning rate trains each, reports the best, and does not train again what is done."""
import argparse
import importlib.util
import json
from pathlib import Path

import pytest

from mmnorm.zoo import Model, Published


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_best_learning_rate(digits_config, tmp_path, capfd):
    spec = importlib.util.spec_from_file_location('zoo_tool', Path(__file__).parents[2] / 'tools/zoo.py')
    zoo_tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo_tool)
    path = digits_config('train_cfg = dict(max_epochs=1, val_interval=1)', base='faster_rcnn_en_r50_digits')
    rates = {'optim_wrapper.optimizer.lr': [1e-3, 1e-9]}
    model = Model('project', str(path), 'xbn', 'object detection', 'EN', 'scratch', 'R-50', 'digits', {},
                  published=(Published('xbn Table 6', 'BN', 'digits val', {'AP^bbox': 1.}), ), sweep=rates)
    args = argparse.Namespace(work_dir=str(tmp_path / 'sweep'), processes=1, cfg_options=['randomness.seed=3'])
    assert zoo_tool.sweep(model, args) == 0
    found = json.loads((tmp_path / 'sweep/sweep.json').read_text())
    assert found['option'] == 'optim_wrapper.optimizer.lr' and list(found['results']) == ['0.001', '1e-09']
    for rate in rates['optim_wrapper.optimizer.lr']:
        text = (tmp_path / f'sweep/lr_{rate}/project.py').read_text()
        assert f'lr={rate}' in text.replace(' ', '') and 'seed=3' in text
    capfd.readouterr()
    assert zoo_tool.sweep(model, args) == 0
    out = capfd.readouterr().out
    assert 'the best' in out and 'Epoch(train)' not in out  # nothing was trained again
