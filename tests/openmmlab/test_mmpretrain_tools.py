"""mmpretrain's own tools with one import line and one key: training, inference, hooks; and ours on what they write."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from sklearn.datasets import load_digits

from mmnorm.norms import SN
from mmnorm.openmmlab.batches import training_forward
from mmnorm.statistics import recollect

mmpretrain = pytest.importorskip('mmpretrain')

CONFIG = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, norm_cfg=dict(type={norm!r})),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=(1,)))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
data = dict(type='CustomDataset', data_root={root!r}, pipeline=pipeline)
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    loading, batch_size=8, dataset=dict(data, data_prefix='train'), sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    loading, batch_size=20, dataset=dict(data, data_prefix='val'), sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Scanned digits, one each: 41 images to train on, 40 to evaluate."""
    root, digits = tmp_path_factory.mktemp('classes'), load_digits()
    for split, numbers in dict(train=range(41), val=range(41, 81)).items():
        for i in numbers:
            path = root / split / f'digit_{digits.target[i]}' / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 15.9).astype('uint8')).resize((64, 64)).convert('RGB').save(path)
    return root


def write(folder, data, norm):
    path = folder / f'{norm.lower()}.py'
    path.write_text(CONFIG.format(norm=norm, root=str(data)))
    return path


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_train_infer_and_diagnose(data, forked_tool, tmp_path):
    config = write(tmp_path, data, 'SN')
    train = Path(mmpretrain.__file__).parent / '.mim/tools/train.py'
    done = forked_tool(str(train), config, '--work-dir', tmp_path / 'run')
    assert done.returncode == 0, done.stdout
    assert re.search(r'norms of the model: 20 SN\b', done.stdout) and 'accuracy/top1:' in done.stdout
    checkpoint = str(tmp_path / 'run/epoch_1.pth')

    model = mmpretrain.get_model(str(config), pretrained=checkpoint)
    assert sum(type(module) is SN for module in model.modules()) == 20
    saved = torch.load(checkpoint, weights_only=False)['state_dict']
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())

    images = sorted(str(path) for path in data.glob('val/digit_3/*.png'))
    found = mmpretrain.ImageClassificationInferencer(str(config), pretrained=checkpoint)(images)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in images])
    scores = model.eval()((pixels - 127.5) / 127.5).detach()
    assert [of_image['pred_label'] for of_image in found] == scores.argmax(1).tolist()

    done = forked_tool(
        'diagnose.py', config, checkpoint, '--batches', 3, '--apply', 'recollect', '--out', tmp_path / 'd'
    )
    assert done.returncode == 0, done.stdout
    result = json.loads((tmp_path / 'd/diagnosis.json').read_text())
    assert result['headline']['as it is'].keys() == {'accuracy/top1'}
    assert result['confidence']['intervals']['recollect']['accuracy/top1'] >= 0 and result['confidence']['images'] == 40
    assert (tmp_path / 'd/epoch_1_recollect.pth').is_file()


def test_unequal_batches_count_by_their_images(data, tmp_path):
    """mmpretrain's PreciseBNHook averages batches of any size alike, and leaves out how far their means are apart."""
    from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats

    cfg = Config.fromfile(write(tmp_path, data, 'BN'))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        model = MODELS.build(dict(cfg.model, data_preprocessor=dict(cfg.data_preprocessor, type='ClsDataPreprocessor')))
        model.train()
        cfg.train_dataloader.sampler.shuffle = False
        cfg.train_dataloader.drop_last = False
        loader = Runner.build_dataloader(cfg.train_dataloader)  # five batches of 8 images, and one of 1
        layer = model.backbone.bn1
        with torch.no_grad():
            images = torch.cat([model.data_preprocessor(batch)['inputs'] for batch in loader])
            truth = model.backbone.conv1(images).double().transpose(0, 1).flatten(1)
        assert len(loader) == 6 and len(images) == 41

        update_bn_stats(model, loader, logger='silent')
        theirs = errors(layer, truth)
        recollect(model, loader, training_forward)
        ours = errors(layer, truth)
    assert max(ours) < 1e-6 and min(theirs) > 0.005, (ours, theirs)


def errors(layer, truth):
    """Of running mean, by the deviation, and running variance, relative: the largest of the channels."""
    mean, var = truth.mean(1), truth.var(1)
    return (
        float(((layer.running_mean - mean).abs() / var.sqrt()).max()),
        float(((layer.running_var - var).abs() / var).max()),
    )
