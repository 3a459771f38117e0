"""A classifier's backbone becomes what a row starts from, or it is said why it cannot."""

import copy
import re

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmnorm.engine.checkpoint import CheckpointError
from mmnorm.engine.networks import build_network
from mmnorm.engine.preflight import unfit_weights
from mmnorm.engine.publish import publish
from mmnorm.openmmlab.pretrained import describe_misfit
from mmnorm.zoo import load_zoo
from mmnorm.zoo.pretraining import find_pretraining, publish_backbone
from tests.processes import ROOT

XBN = dict(norm_cfg=dict(type='GN', num_groups=2))


def detector(**backbone):
    """A config of a detector with a small frozen backbone; XBN's, if nothing else is said."""
    backbone = dict(type='XBNResNet', depth=18, base_channels=4, norm_cfg=dict(type='FrozenBN')) | backbone
    if backbone['type'].startswith('XBN'):
        backbone.setdefault('xbn', XBN)
    neck = dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5)
    head = dict(
        type='RetinaHead',
        num_classes=2,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
    )
    return Config(
        dict(default_scope='mmdet', model=dict(type='RetinaNet', backbone=backbone, neck=neck, bbox_head=head))
    )


def classifier(path, prefix='backbone.', head='head.fc.weight', **backbone):
    """Write the checkpoint of a classifier, with or without its head; returns its backbone's weights."""
    torch.manual_seed(0)
    live = detector(**{'norm_cfg': dict(type='BN')} | backbone)
    weights = build_network(live).backbone.state_dict()
    weights = {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in weights.items()}
    named = {prefix + key: value for key, value in weights.items()} | ({head: torch.ones(2, 32)} if head else {})
    torch.save(dict(state_dict=named, optimizer={}, meta=dict(epoch=3, seed=1, cfg='model = 1')), path)
    return weights


def published(tmp_path, cfg=None, source='classifier.pth'):
    note = dict(pretrained_with='classifier.py', data='digits', row='row')
    return publish_backbone(tmp_path / source, cfg or detector(), 'row', tmp_path / 'pretrained/row.pth', note)


@pytest.mark.parametrize('prefix, head', [('backbone.', 'head.fc.weight'), ('', 'fc.weight'), ('', None)])
def test_all_tensors_of_the_backbone_are_published_and_loaded(tmp_path, prefix, head):
    weights = classifier(tmp_path / 'classifier.pth', prefix, head)
    done, notes = published(tmp_path)
    assert done.path == tmp_path / 'pretrained/row.pth' and not notes
    content = torch.load(done.path, weights_only=True)
    assert content['state_dict'].keys() == weights.keys()
    assert all(torch.equal(content['state_dict'][key], value) for key, value in weights.items())
    assert content['meta'] == dict(
        epoch=3, cfg='model = 1', mmnorm=dict(pretrained_with='classifier.py', data='digits', row='row')
    )
    assert done.left_out == ['optimizer'] + [f'1 tensors outside the backbone ({head})'] * bool(head)
    cfg = detector(init_cfg=dict(type='Pretrained', checkpoint=str(done.path)))
    assert unfit_weights(cfg) == []
    network = build_network(cfg)
    network.backbone.init_weights()
    assert all(torch.equal(network.backbone.state_dict()[key], value) for key, value in weights.items())


MISFITS = {
    'deeper': (dict(depth=34), 'its layer1 has 3 blocks, that of the backbone 2'),
    'narrower': (
        dict(base_channels=2),
        'tensors have another shape, as conv1.weight: .2, 3, 7, 7., and .4, 3, 7, 7. in the backbone',
    ),
    'elsewhere': (
        dict(xbn=dict(XBN, position=2)),
        'it has batch-free norms in 8 places where the backbone has BN, as layer1.0.bn2, and the BNs .* never saw',
    ),
    'of BN': (
        dict(type='ResNet'),
        'it has BN in 8 places where the backbone has batch-free norms, as layer1.0.bn1, and the BNs .* never saw',
    ),
}


@pytest.mark.parametrize('name', MISFITS)
def test_weights_of_another_backbone_are_refused(tmp_path, name):
    backbone, message = MISFITS[name]
    classifier(tmp_path / 'classifier.pth', **backbone)
    with pytest.raises(CheckpointError, match=f'classifier.pth is not what row starts from: .*{message}'):
        published(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['classifier.pth']  # nothing is published half


@pytest.mark.parametrize('name', MISFITS)
def test_preflight_refuses_them_where_a_config_names_them(tmp_path, name):
    weights = classifier(tmp_path / 'classifier.pth', **MISFITS[name][0])
    torch.save(weights, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    (message,) = unfit_weights(detector(init_cfg=init_cfg))
    assert re.search(MISFITS[name][1], message), message
    live = unfit_weights(detector(init_cfg=init_cfg, norm_cfg=dict(type='BN'), norm_eval=False))
    assert len(live) == (name in ('deeper', 'narrower'))  # live BNs get used to what is before them


def test_a_classifier_with_its_prefix_is_no_backbone(tmp_path):
    classifier(tmp_path / 'classifier.pth')
    cfg = detector(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth')))
    (message,) = unfit_weights(cfg)
    assert "but those below 'backbone.' are" in message and 'CHECKPOINT --only backbone' in message
    cfg.model.backbone.init_cfg.prefix = 'backbone.'
    assert unfit_weights(cfg) == []
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(publish(tmp_path / 'classifier.pth').path))
    assert len(unfit_weights(cfg)) == 1
    cfg.model.backbone.init_cfg.checkpoint = str(publish(tmp_path / 'classifier.pth', only='backbone').path)
    assert unfit_weights(cfg) == []


def test_names_of_mmpretrain_become_those_of_the_row(tmp_path):
    mmpretrain = pytest.importorskip('mmpretrain.models')
    theirs = mmpretrain.MobileNetV2(widen_factor=0.1)
    torch.save({f'backbone.{key}': value for key, value in theirs.state_dict().items()}, tmp_path / 'classifier.pth')
    cfg = detector()
    cfg.model.backbone = dict(type='MobileNetV2', widen_factor=0.1, out_indices=(1, 2, 4, 7))
    cfg.model.neck.in_channels = [8, 8, 16, 1280]
    done, _ = published(tmp_path, cfg)
    names = build_network(cfg).backbone.state_dict().keys()
    assert torch.load(done.path)['state_dict'].keys() == names != theirs.state_dict().keys()


def test_half_precision_and_averages_are_said(tmp_path):
    weights = classifier(tmp_path / 'classifier.pth')
    content = torch.load(tmp_path / 'classifier.pth')
    half = {key: value.half() if value.is_floating_point() else value for key, value in content['state_dict'].items()}
    torch.save(dict(content, state_dict=half, ema_state_dict=copy.copy(half)), tmp_path / 'classifier.pth')
    done, notes = published(tmp_path)
    found = torch.load(done.path)['state_dict']
    assert all(found[key].dtype == value.dtype for key, value in weights.items())
    assert torch.equal(found['conv1.weight'], weights['conv1.weight'].half().float())
    assert 'tensors are torch.float16' in notes[0] and 'averages of that training (EMA)' in notes[1]
    assert 'ema_state_dict' in done.left_out


def test_weights_that_are_not_finite_are_refused(tmp_path):
    classifier(tmp_path / 'classifier.pth')
    content = torch.load(tmp_path / 'classifier.pth')
    content['state_dict']['backbone.bn1.running_var'][0] = float('inf')
    torch.save(content, tmp_path / 'classifier.pth')
    with pytest.raises(CheckpointError, match='NaN or infinity in 1 of its tensors; first: backbone.bn1.running_var'):
        published(tmp_path)


def test_with_c4_the_last_stage_is_of_the_head(tmp_path, monkeypatch):
    weights = classifier(tmp_path / 'classifier.pth', type='ResNet')
    cfg = detector(type='ResNet', num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2))
    with pytest.raises(CheckpointError, match='of its tensors not used; first: layer4.0.conv1.weight'):
        published(tmp_path, cfg)
    network = build_network(cfg)
    head = nn.Module()
    head.layer4 = build_network(detector(type='ResNet')).backbone.layer4
    network.roi_head = nn.Module()
    network.roi_head.shared_head = head  # as mmdet's ResLayer is
    monkeypatch.setattr('mmnorm.zoo.pretraining.build_network', lambda cfg: network)
    assert torch.load(published(tmp_path, cfg)[0].path)['state_dict'].keys() == weights.keys()


def test_rows_know_their_pretraining():
    zoo = load_zoo()
    row = zoo['mask_rcnn_xbn_r50_digits_pretrained']
    cfg = Config.fromfile(row.path)
    found = find_pretraining(row, cfg)
    assert found.config.samefile(ROOT / 'configs/resnet50_xbn_digits.py') and not found.option
    assert str(found.file) == row.pretrained['File'] == 'pretrained/resnet50_xbn_digits.pth'
    cfg.model.backbone.init_cfg.checkpoint = 'torchvision://resnet50'
    assert find_pretraining(row, cfg).option == f'model.backbone.init_cfg.checkpoint={found.file}'
    reasons = dict(mask_rcnn_frozenbn_r50='weights that are released', mask_rcnn_xbn_r50_digits='from scratch')
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f'{name} has no pretraining: it .*{reason}'):
            find_pretraining(zoo[name], Config.fromfile(zoo[name].path))


def test_a_backbone_that_is_looked_at_stays_in_its_mode():
    network = build_network(detector()).backbone.eval()
    assert describe_misfit(network, network.state_dict()) == '' and not network.training
