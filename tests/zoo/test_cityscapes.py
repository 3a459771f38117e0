"""The submission to Cityscapes' server that configs/sn/_base_/csail_cityscapes.py describes, word for word."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
LABEL_IDS = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}  # of the 19 evaluated classes


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize('options', [(), ('--tta',)], ids=['single', 'multi'])
def test_submission_of_the_test_set(forked_tool, digits, tmp_path, options):
    described = (ROOT / 'configs/sn/_base_/csail_cityscapes.py').read_text().split('"""')[1]
    recipe = ''.join(re.findall(r'^    .*\n', described, re.MULTILINE))
    recipe = '\n'.join(line[4:] for line in recipe.splitlines()).replace('PATH/', f'{ROOT}/')
    # the test set has no labels
    shutil.copytree(digits / 'cityscapes/leftImg8bit/val', tmp_path / 'data/cityscapes/leftImg8bit/test')
    config = tmp_path / 'submission.py'
    config.write_text(
        recipe
        + """
model = dict(
    backbone=dict(base_channels=4, stem_channels=4, init_cfg=None),
    decode_head=dict(in_channels=128), auxiliary_head=dict(in_channels=64))
test_dataloader['num_workers'] = 1
"""
    )
    weights = tmp_path / 'random.pth'
    made = forked_tool(write_weights(tmp_path, config, weights))
    assert made.returncode == 0, made.stdout[-3000:]
    done = forked_tool('test.py', config, weights, *options)
    assert done.returncode == 0, done.stdout[-3000:]
    images = sorted((tmp_path / 'data/cityscapes/leftImg8bit/test').rglob('*.png'))
    predicted = sorted((tmp_path / 'work_dirs/submission').glob('*.png'))
    assert [path.name for path in predicted] == [path.name for path in images] and images
    for image, labels in zip(images, map(Image.open, predicted)):
        assert labels.size == Image.open(image).size and set(np.unique(labels)) <= LABEL_IDS


def write_weights(folder, config, path):
    """A script that saves the initial weights of a config's network."""
    script = folder / 'weights.py'
    script.write_text(f"""
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
import mmnorm
init_default_scope('mmseg')
torch.manual_seed(0)
torch.save(dict(state_dict=MODELS.build(Config.fromfile({str(config)!r}).model).state_dict()), {str(path)!r})
""")
    return str(script)
