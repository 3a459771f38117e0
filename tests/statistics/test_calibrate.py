"""A finished network's BNs become EN (evalnorm, Section 3.4), in place and in its config."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmnorm.norms import EN, FrozenBN, SyncEN, estimate_offline
from mmnorm.openmmlab.configs import evalnorm_config
from mmnorm.statistics import apply_rule, measure_shift, to_evalnorm, trained_by_batch

from .test_shift import Head, batches, seeded, trained  # noqa: F401

build = MODELS.build  # which lets models change the config that they are given


def network(path, **changes):
    cfg = Config.fromstring(f'_base_ = {path!r}', '.py')
    cfg.merge_from_dict(changes)
    init_default_scope(cfg.default_scope)
    return cfg


def detector(**changes):
    """Stock Faster R-CNN, narrow: BN in the backbone by its default, none elsewhere."""
    return network(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        **{
            'model.backbone.base_channels': 4,
            'model.backbone.depth': 50,
            'model.backbone.init_cfg': None,
            'model.neck.in_channels': [16, 32, 64, 128],
            **changes,
        },
    )


def segmenter(**changes):
    return network(
        'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        **{
            'model.backbone.base_channels': 4,
            'model.backbone.stem_channels': 4,
            'model.decode_head.in_channels': 128,
            'model.decode_head.channels': 8,
            'model.auxiliary_head.in_channels': 64,
            'model.auxiliary_head.channels': 8,
            **changes,
        },
    )


def test_trained_by_batch_follows_norm_eval_and_frozen_stages():
    model = build(detector().model)
    assert trained_by_batch(model) == []  # norm_eval=True, as most stock detectors have it
    model = build(detector(**{'model.backbone.norm_eval': False}).model)
    names = trained_by_batch(model)
    assert 'backbone.layer2.0.bn1' in names and 'backbone.layer4.2.bn3' in names
    assert not any(name.startswith(('backbone.bn1', 'backbone.layer1.')) for name in names)  # frozen_stages=1
    assert model.training  # as it was built
    assert trained_by_batch(nn.Sequential(FrozenBN(3), nn.BatchNorm2d(3)).eval()) == ['1']


def test_replaced_layers_evaluate_as_before():
    model, data = trained(Head()).eval(), batches()
    model.shared[1].weight.requires_grad_(False)
    expected = [model(batch) for batch in data]
    parameters = dict(model.named_parameters())
    assert to_evalnorm(model) == ['stem.1', 'shared.1', 'roi']
    assert all(type(model.get_submodule(name)) is EN for name in ('stem.1', 'shared.1', 'roi'))
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert not model.training and not model.shared[1].weight.requires_grad
    with torch.no_grad():
        for batch, y in zip(data, expected):
            torch.testing.assert_close(model(batch), y)


def test_what_is_replaced():
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.SyncBatchNorm(3), FrozenBN(3), nn.BatchNorm2d(3))
    assert to_evalnorm(model, names=['0', '1']) == ['0', '1']
    assert type(model[0]) is EN and (model[0].weight == 1).all() and type(model[1]) is SyncEN
    assert type(model[3]) is nn.BatchNorm2d
    with pytest.raises(ValueError, match='no normalization batch size to correct for'):
        to_evalnorm(build(detector().model))


def test_a_layer_of_two_names_stays_one():
    model = trained(Head())
    model.again = nn.Sequential(model.shared[1])
    assert to_evalnorm(model, ['shared.1']) == ['shared.1']
    assert type(model.again[0]) is EN and model.again[0] is model.shared[1]


def test_estimate_then_rule():
    torch.manual_seed(1)
    model = trained(Head())
    to_evalnorm(model, ['stem.1', 'shared.1'])
    values = estimate_offline(model, batches(((4, 8, 8),) * 30))
    assert values.keys() == {'stem.1', 'shared.1'}
    assert all(0 <= value <= 1 for pair in values.values() for value in pair)
    assert apply_rule(model) == {'stem.1': 4, 'shared.1': 4}
    assert float(model.stem[1].alpha) == float(model.shared[1].beta) == 1 / 16
    apply_rule(model, power=1)
    assert float(model.stem[1].beta) == 1 / 4
    state = model.state_dict()
    again = trained(Head())
    to_evalnorm(again, ['stem.1', 'shared.1'])
    again.load_state_dict(state)  # a set rule survives, and is not taken for an estimate to come
    assert float(again.stem[1].alpha) == 1 / 4


@pytest.mark.parametrize(
    'cfg, changes',
    [
        (detector, {'model.backbone.norm_eval': False}),  # the backbone leaves norm_cfg at its default
        (
            detector,
            {
                'model.backbone.norm_eval': False,
                'model.roi_head.bbox_head': dict(
                    type='Shared4Conv1FCBBoxHead', conv_out_channels=8, norm_cfg=dict(type='BN')
                ),
            },
        ),
        (segmenter, {}),  # SyncBN
    ],
    ids=['default norm_cfg', 'norm in the head', 'mmseg'],
)
def test_config_builds_the_same_network(cfg, changes):
    cfg = cfg(**changes)
    before = copy.deepcopy(cfg._cfg_dict)
    model = trained(build(copy.deepcopy(cfg.model)))
    names = to_evalnorm(model)
    for name in names:
        model.get_submodule(name).alpha.fill_(0.25)
        model.get_submodule(name).mean_batch_size.fill_(2)
    new, twin = evalnorm_config(cfg, model, build)
    assert cfg._cfg_dict == before  # a copy
    assert new.custom_imports['imports'][-1] == 'mmnorm'
    again = build(Config.fromstring(new.pretty_text, '.py').model)
    again.load_state_dict(twin.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(again.eval().extract_feat(x), model.eval().extract_feat(x)):
            torch.testing.assert_close(found, expected)


def test_own_eps_of_a_default_is_kept():
    cfg = network('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py', **{'model.backbone.init_cfg': None})
    assert 'norm_cfg' not in cfg.model.backbone
    model = build(copy.deepcopy(cfg.model))
    model.backbone.conv1.bn.eps = 1e-3
    model.backbone.norm_eval = False
    to_evalnorm(model)
    new, twin = evalnorm_config(cfg, model, build)
    assert type(twin.backbone.conv1.bn) is EN and twin.backbone.conv1.bn.eps == 1e-3


def with_own_bn(cfg):
    """A detector with a BN that is in the code of its neck and not in its config."""
    model = build(cfg)
    model.neck.extra = nn.BatchNorm2d(4)
    return model


def test_bn_in_the_code_of_a_class_is_told():
    cfg = detector(**{'model.backbone.norm_eval': False})
    model = with_own_bn(copy.deepcopy(cfg.model))
    to_evalnorm(model)
    with pytest.raises(ValueError, match='1 layers are BN in the code of their classes; first: neck.extra. No'):
        evalnorm_config(cfg, model, with_own_bn)


def test_a_part_that_takes_no_norm_cfg_is_told():
    cfg = detector(**{'model.backbone.norm_eval': False})
    model = with_own_bn(copy.deepcopy(cfg.model))
    to_evalnorm(model)

    def without_norm_cfg(cfg):
        given = 'norm_cfg' in cfg.neck
        cfg.neck.pop('norm_cfg', None)
        if given:
            raise TypeError("unexpected keyword argument 'norm_cfg'")
        return with_own_bn(cfg)

    with pytest.raises(ValueError, match='a part of the network does not take norm_cfg'):
        evalnorm_config(cfg, model, without_norm_cfg)


def test_folded_evaluation_is_undone():
    """ConvModule(efficient_conv_bn_eval=True) passes its norm by in evaluation."""
    model = trained(nn.Sequential(ConvModule(3, 4, 1, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True))).eval()
    data = batches()
    assert '0.bn' in measure_shift(model, data)
    assert model[0].efficient_conv_bn_eval_forward is not None  # as it was
    to_evalnorm(model)
    model[0].bn.alpha.fill_(0.5)
    model[0].bn.mean_batch_size.fill_(2)
    with torch.no_grad():
        expected = model[0].activate(model[0].bn(model[0].conv(data[0])))
        torch.testing.assert_close(model(data[0]), expected)
