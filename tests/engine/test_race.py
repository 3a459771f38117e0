"""The configs of a race: what changes with norm and batch size, and what does not."""

import copy

import pytest
from mmengine.config import Config

from mmnorm.blocks import list_norms
from mmnorm.engine import parse_config
from mmnorm.engine.networks import build_network
from mmnorm.engine.race import Start, parse_norm, racing_config, with_norm
from tests.processes import ROOT


@pytest.fixture(scope='module')
def digits_cfg():
    return parse_config(ROOT / 'configs/mask_rcnn_xbn_r50_digits.py')


def read(text):
    return Config.fromstring(text, '.py')


@pytest.fixture(scope='module')
def detector():
    """A stock config of mmdet: frozen BNs in the backbone, GN in the heads, 12 epochs for 16 images in a step."""
    return read("_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'")


@pytest.fixture(scope='module')
def segmentor():
    """One of mmseg: SyncBN everywhere, 80,000 iterations."""
    return read("_base_ = 'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py'")


def types(cfg):
    return {layer.type for layer in list_norms(build_network(cfg))}


def states(cfg):
    return {layer.state for layer in list_norms(build_network(cfg).train())}


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        ('SN', ('SN', {})),
        ('GN:num_groups=16', ('GN', dict(num_groups=16))),
        ('XBN:position=1,every=2', ('XBN', dict(position=1, every=2))),
        ('EN:mode=online,held=None', ('EN', dict(mode='online', held=None))),
    ],
)
def test_a_norm_is_read(text, wanted):
    assert parse_norm(text) == wanted


@pytest.mark.parametrize('text', ['GN:16', 'GN:=3', ':a=1', 'GN:num_groups', 'GN:a b=1'])
def test_what_is_no_norm_is_refused(text):
    with pytest.raises(ValueError, match=r'as in GN:num_groups=16'):
        parse_norm(text)


@pytest.mark.parametrize('norm', ['BN', 'SN', 'GN:num_groups=16'])
def test_a_norm_takes_the_place_of_all_bns(digits_cfg, norm):
    assert types(with_norm(digits_cfg, norm)) == {norm.partition(':')[0]}


def test_xbn_is_a_twin_of_the_backbone(digits_cfg):
    plain = with_norm(digits_cfg, 'BN')
    assert plain.model.backbone.type == 'ResNet' and 'xbn' not in plain.model.backbone
    again = with_norm(plain, 'XBN:position=1,num_groups=8')
    network = build_network(again)
    groups = {module.num_groups for module in network.modules() if type(module).__name__ == 'GroupNorm'}
    assert again.model.backbone.type == 'XBNResNet' and groups == {8}
    assert all(name.endswith('bn1') for name in network.backbone.xbn_layers)
    assert with_norm(digits_cfg, 'XBN').model == build_and_keep(digits_cfg)  # the config's own placement


def build_and_keep(cfg):
    """The model of a config that has XBN, as a race has it: each part's norm_cfg stated."""
    return with_norm(cfg, 'XBN:').model


def test_norms_that_were_fixed_train_and_others_stay(detector):
    before = states(detector)
    cfg = with_norm(detector, 'SN')
    network = build_network(cfg).train()
    found = {(layer.type, layer.state) for layer in list_norms(network)}
    assert 'fixed' in before and found == {('SN', 'trains'), ('GN', 'trains')}
    assert cfg.model.backbone.frozen_stages == -1 and cfg.model.backbone.norm_eval is False
    assert all(parameter.requires_grad for parameter in network.backbone.parameters())
    assert detector.model.backbone.frozen_stages == 1  # a copy was changed
    assert with_norm(detector, 'as-is').model == detector.model


def test_eps_and_momentum_are_kept_where_they_have_a_meaning():
    cfg = read("_base_ = 'mmdet::efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py'")
    kept = with_norm(cfg, 'RBN').model.backbone.norm_cfg
    assert (kept.type, kept.eps, kept.momentum) == ('RBN', 1e-3, 0.01)
    cfg.model.backbone.norm_cfg.type = 'BN'
    cfg.model.neck.norm_cfg = dict(type='GN', num_groups=8)
    assert with_norm(cfg, 'GN:num_groups=8').model.backbone.norm_cfg == dict(
        type='GN', requires_grad=True, eps=1e-3, num_groups=8
    )


@pytest.mark.parametrize(
    ('norm', 'message'),
    [
        ('Foo', 'no norm is registered as Foo'),
        ('GN', r'GN: the network cannot be built with it: .*num_groups'),
        ('XBN:position=4', r'XBN:position=4: the network cannot be built .* position'),
    ],
)
def test_a_norm_that_cannot_race_is_refused(digits_cfg, norm, message):
    with pytest.raises(ValueError, match=message):
        with_norm(digits_cfg, norm)


def test_a_network_without_bn_is_refused():
    cfg = read("_base_ = 'mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py'")
    with pytest.raises(ValueError, match='no BN'):
        with_norm(cfg, 'SN')


def test_all_batch_sizes_see_equally_many_images_by_epochs(detector):
    cfg = racing_config(detector, Start('as-is', 2, 5), 2, 0.5, 'linear')
    assert cfg.train_cfg.max_epochs == 6 and cfg.train_cfg.val_interval == 6
    assert cfg.train_dataloader.batch_size == 2 and cfg.randomness.seed == 5
    # 4 images a step for 16: a quarter of the learning rate, four times the iterations of a warm-up of half the epochs
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(detector.optim_wrapper.optimizer.lr / 4)
    warm_up, steps = cfg.param_scheduler
    assert warm_up.end == detector.param_scheduler[0].end * 4 / 2
    assert steps.milestones == [4, 6] and steps.end == 6  # of 8 and 11, of 12
    assert cfg.auto_scale_lr.enable is False
    assert detector.train_cfg.max_epochs == 12  # a copy was changed


@pytest.mark.parametrize(('scaling', 'factor'), [('linear', 0.25), ('sqrt', 0.5), ('none', 1)])
def test_all_batch_sizes_see_equally_many_images_by_iterations(segmentor, scaling, factor):
    # this config says nothing of a batch that it is for: that of its own on as many processes
    stated = copy.deepcopy(segmentor)
    stated.auto_scale_lr = None
    cfg = racing_config(stated, Start('as-is', 1, 0), 4, 0.01, scaling)
    iterations = cfg.train_cfg.max_iters
    assert iterations * 1 == 80000 * 0.01 * stated.train_dataloader.batch_size
    assert cfg.train_cfg.val_interval == iterations and cfg.param_scheduler[-1].end == iterations
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(stated.optim_wrapper.optimizer.lr * factor)
    assert cfg.default_hooks.checkpoint.interval == iterations / 4


def test_a_norm_that_the_config_does_not_state_is_replaced():
    pytest.importorskip('mmpretrain')
    cfg = read("_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'")
    assert 'norm_cfg' not in cfg.model.backbone and types(with_norm(cfg, 'SN')) == {'SN'}


def test_synchronized_bns_are_replaced_as_others(segmentor):
    assert types(with_norm(segmentor, 'SyncSN')) == {'SyncSN'}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda cfg: cfg.train_dataloader.pop('batch_size'), 'batch_size'),
        (lambda cfg: cfg.train_cfg.pop('max_epochs'), 'max_epochs'),
        (lambda cfg: cfg.optim_wrapper.optimizer.pop('lr'), '--lr-scaling none'),
    ],
)
def test_a_config_without_what_a_race_sets_is_refused(detector, change, message):
    cfg = copy.deepcopy(detector)
    change(cfg)
    with pytest.raises(ValueError, match=message):
        racing_config(cfg, Start('as-is', 2, 0), 1, 1.0, 'linear')


def test_names_of_folders_are_plain():
    assert Start('XBN:position=(1, 2),num_groups=8', 2, 0).name == 'XBN-position-1-2-num-groups-8_b2_seed0'
