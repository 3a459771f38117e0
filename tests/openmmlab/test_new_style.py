"""Pure Python configs, whose types are imported classes."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmnorm.norms import NORMS
from mmnorm.openmmlab.configs import describe_unreplaced, replace_norm_types

BASE = """
from torch import nn
backbone = dict(depth=18, base_channels=8, norm_eval=False, norm_cfg=dict(type=nn.BatchNorm2d))
"""


def config(tmp_path, text):
    (tmp_path / 'base.py').write_text(BASE)
    path = tmp_path / 'child.py'
    path.write_text('from mmengine.config import read_base\nwith read_base():\n    from .base import *\n' + text)
    return path


@pytest.mark.parametrize('module', ['mmnorm', 'mmnorm.norms'])
def test_every_name_is_imported_and_built(module, tmp_path):
    names = ', '.join(NORMS)
    text = f'from {module} import {names}\nnorms = [dict(type=t, num_features=8) for t in ({names})]\n'
    cfg = Config.fromfile(config(tmp_path, text))
    assert [type(MODELS.build(norm)) for norm in cfg.norms] == list(NORMS.values())
    cfg.dump(tmp_path / 'dumped.py')
    assert [type(MODELS.build(norm)) for norm in Config.fromfile(tmp_path / 'dumped.py').norms] == list(NORMS.values())


def test_a_hosts_backbone_is_built_with_it(tmp_path):
    text = """
from mmdet.models.backbones import ResNet
from mmnorm import SN
backbone.update(type=ResNet, norm_cfg=dict(type=SN, requires_grad=True))
"""
    cfg = Config.fromfile(config(tmp_path, text))
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(cfg.backbone)
    assert sum(isinstance(m, NORMS['SN']) for m in backbone.modules()) == 20


def test_a_class_of_bn_is_bn():
    model = dict(backbone=dict(type='ResNet', norm_cfg=dict(type=nn.BatchNorm2d)))
    assert describe_unreplaced(model, nn.Sequential(nn.BatchNorm2d(8))) == ''
    assert replace_norm_types(model, dict(BN='EN'), mode='offline') == 1
    assert model['backbone']['norm_cfg'] == dict(type='EN', mode='offline')
