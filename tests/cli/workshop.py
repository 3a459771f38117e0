"""A folder with what users give to the tools: configs and checkpoints that work, and files that are something else."""

import os
import pickle
import zipfile

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from mmnorm.engine.networks import build_network
from tests.processes import ROOT

BACKBONE = "dict(type='ResNet', depth=18, base_channels=4, norm_cfg=dict(type='BN'))"
DETECTOR = f"""dict(
    type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor'), backbone={BACKBONE},
    neck=dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=10, in_channels=8, feat_channels=8, stacked_convs=1),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=10, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))"""
SEGMENTOR = f"""dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
    backbone={BACKBONE[:-1]}, stem_channels=4),
    decode_head=dict(type='FCNHead', in_channels=32, channels=8, num_convs=1, num_classes=11, norm_cfg=dict(type='BN')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))"""


def write(folder, digits):
    """Write it.

    Args:
        folder (Path): Where; configs and files of other kinds are directly in it.
        digits (Path): A small digits data set.
    """
    _write_configs(folder, digits)
    _write_checkpoints(folder)
    _write_others(folder)


def _write_configs(folder, digits):
    """Configs without parents, so that cases are read quickly."""
    cfg = Config.fromfile(ROOT / 'configs/faster_rcnn_en_r50_digits.py')
    cfg.model = Config.fromstring(f'model = {DETECTOR}', '.py').model
    cfg.custom_hooks = []
    cfg.pop('auto_scale_lr')
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.data_root = str(digits / 'coco')
        cfg[key].update(num_workers=0, persistent_workers=False)
    cfg.val_evaluator.ann_file = str(digits / 'coco/annotations/instances_val2017.json')
    cfg.test_evaluator.ann_file = cfg.val_evaluator.ann_file
    cfg.dump(folder / 'base.py')
    cfg = Config.fromfile(ROOT / 'configs/pspnet_xbn_r50_digits.py')
    cfg.model = Config.fromstring(f'model = {SEGMENTOR}', '.py').model
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.data_root = str(digits / 'ade')
        cfg[key].update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.dump(folder / 'seg.py')
    text = (folder / 'base.py').read_text()
    for name, norm in (('sn', 'SN'), ('rbn', 'RBN'), ('gn', 'GN')):
        norm = f'type={norm!r}' + ', num_groups=2' * (norm == 'GN')
        (folder / f'{name}.py').write_text(f"_base_ = './base.py'\nmodel = dict(backbone=dict(norm_cfg=dict({norm})))")
    texts = {
        'empty.py': b'',
        'no_model.py': b'a = 1',
        'bom.py': b'\xef\xbb\xbf' + text.encode(),
        'utf16.py': text.encode('utf-16'),
        'latin1.py': 'a = "K\xf6ln"\n'.encode('latin-1') + text.encode(),
        'nul.py': b'a = 1\n\0' + text.encode(),
        'binary.py': bytes(range(256)),
        'deep.py': b'a = ' + b'[' * 1000 + b']' * 1000,
        'minus.py': b'a = ' + b'-' * 10**6 + b'1',
        'exits.py': b'import sys\nsys.exit(0)',
        'quits.py': b'raise KeyboardInterrupt',
        'own.py': b"_base_ = './own.py'",
        'one.py': b"_base_ = './other.py'",
        'other.py': b"_base_ = './one.py'",
        'no_parent.py': b"_base_ = './gone.py'",
        'number.py': b'_base_ = 5',
        'empty.json': b'',
        'list.json': b'[1, 2]',
        'cut.json': b'{"model": {',
        'deep.json': b'[' * 10**5 + b']' * 10**5,
        'bom.json': b'\xef\xbb\xbf{"model": {"type": "X"}}',
        'empty.yaml': b'',
        'text.yaml': b'only a text',
        'tabs.yaml': b'model:\n\ttype: X',
        'tag.yaml': b'model: !!python/object/apply:builtins.open [ran, w]',
        'unknown.py': b"model = dict(type='Unheard')",
        'base.txt': text.encode(),
        'base': text.encode(),
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)


def _write_checkpoints(folder):
    torch.manual_seed(0)
    for name in ('base', 'seg', 'sn', 'rbn', 'gn'):
        network = build_network(Config.fromfile(folder / f'{name}.py'))
        torch.save(dict(meta=dict(epoch=1), state_dict=network.state_dict()), folder / f'{name}.pth')
    weights = torch.load(folder / 'base.pth', weights_only=True)['state_dict']
    nan = {key: value * torch.nan if value.is_floating_point() else value for key, value in weights.items()}
    of_sn = torch.load(folder / 'sn.pth', weights_only=True)['state_dict']
    contents = {
        'lacking': dict(state_dict={key: value for key, value in of_sn.items() if 'layer3.1.conv2' not in key}),
        'nan': dict(state_dict=nan),
        'negative': dict(state_dict=dict(weights, **{'backbone.bn1.running_var': -torch.ones(4)})),
        'wider': dict(state_dict=dict(weights, **{'backbone.conv1.weight': torch.ones(8, 3, 7, 7)})),
        'backbone': dict(state_dict={k[9:]: value for k, value in weights.items() if k.startswith('backbone.')}),
        'optimizer': dict(optimizer=dict(state={}, param_groups=[])),
        'no_weights': dict(state_dict={}),
        'texts': dict(state_dict=dict.fromkeys(weights, 'a text')),
        'numbers': dict(state_dict={0: torch.ones(1)}),
        'no_dict': dict(state_dict='weights'),
        'list': [1, 2],
        'tensor': torch.ones(3),
        'none': None,
    }
    for name, content in contents.items():
        torch.save(content, folder / f'{name}.pth')
    (folder / 'cut.pth').write_bytes((folder / 'base.pth').read_bytes()[:-1000])


def _write_others(folder):
    (folder / 'empty.pth').touch()
    (folder / 'k.pth').touch()
    (folder / 'file').touch()
    for name, content in {
        'json': b'{"state_dict": {}}',
        'csv': b'run,AP\n1,2\n',
        'yaml': b'model: 1\n',
        'html': b'<!DOCTYPE html><html>',
        'python': b'model = dict()\n',
        'pickle': pickle.dumps(dict(state_dict=dict(a=1))),
        'half': b'PK\x03\x04 and no more',
    }.items():
        (folder / f'{name}.pth').write_bytes(content)
    Image.new('RGB', (4, 4)).save(folder / 'png.pth', format='png')
    np.savez(folder / 'arrays.npz', a=np.ones(3))
    (folder / 'arrays.npz').rename(folder / 'npz.pth')
    with zipfile.ZipFile(folder / 'zip.pth', 'w') as archive:
        archive.writestr('a.txt', 'a text')
    for suffix in ('pth', 'py'):
        (folder / f'folder.{suffix}').mkdir()
        (folder / f'loop.{suffix}').symlink_to(f'loop.{suffix}')
        (folder / f'dangling.{suffix}').symlink_to(f'gone.{suffix}')
        os.mkfifo(folder / f'fifo.{suffix}')
    (folder / 'loop').symlink_to('loop')
    for name, content in {'cut': b'{"a": ', 'list': b'[1]'}.items():
        (folder / f'run_{name}').mkdir()
        (folder / f'run_{name}/run.json').write_bytes(content)
    (folder / 'empty').mkdir()
