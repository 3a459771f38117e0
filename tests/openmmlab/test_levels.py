"""Statistics per level in real detectors: heads that the levels of their feature pyramid share."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from mmnorm import PerLevel, measure_shift, per_level, recollect
from mmnorm.openmmlab.batches import training_forward
from mmnorm.openmmlab.configs import describe_unreplaced, evalnorm_config
from mmnorm.statistics import to_evalnorm, trained_by_batch

BASES = dict(
    retinanet='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    fcos='mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    atss='mmdet::atss/atss_r50_fpn_1x_coco.py',
)
PER_LEVEL = [dict(type='PerLevel', norm=dict(type='BN'), levels=5), dict(type='SN', per_level=5)]


def small(detector, norm_cfg):
    """A detector's config at tiny size, with a norm in its head."""
    init_default_scope('mmdet')
    cfg = get_config(BASES[detector])
    cfg.model.backbone.update(depth=18, base_channels=8, init_cfg=None, frozen_stages=-1, norm_eval=False)
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=2, norm_cfg=norm_cfg)
    return cfg


def batch():
    return demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=80, use_box_type=True)


def layers_of(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, PerLevel)}


@pytest.mark.parametrize('norm_cfg', PER_LEVEL)
@pytest.mark.parametrize('detector', BASES)
def test_a_training_step_and_a_prediction(detector, norm_cfg):
    cfg = small(detector, norm_cfg)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    assert describe_unreplaced(cfg.model, model) == ''
    layers = layers_of(model)
    assert len(layers) == 4 and all(name.startswith('bbox_head.') for name in layers)
    got = {name: [] for name in layers}
    for name in layers:
        conv = model.get_submodule(f'{name.rpartition(".")[0]}.conv')
        conv.register_forward_hook(lambda conv, args, y, name=name: got[name].append(y.detach()))
    optimizer = build_optim_wrapper(
        model, dict(optimizer=dict(type='SGD', lr=1e-3, weight_decay=1e-4), paramwise_cfg=dict(norm_decay_mult=0))
    )
    losses = model.train_step(batch(), optimizer)
    assert all(value.isfinite() for value in losses.values())
    for name, layer in layers.items():
        assert len(got[name]) == 5
        for level, x in zip(layer, got[name]):
            assert level.num_batches_tracked == 1
            torch.testing.assert_close(level.running_mean, 0.1 * x.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    model.eval()
    with torch.no_grad():
        assert len(model.test_step(batch())) == 2
        # where mmdet calls the head's forward by itself
        model(batch()['inputs'][0][None].float(), mode='tensor')


@pytest.mark.parametrize('norm_cfg', PER_LEVEL)
def test_a_checkpoint_of_the_stock_head_loads(norm_cfg):
    plain = norm_cfg.get('norm') or dict(type=norm_cfg['type'])
    stock, ours = (MODELS.build(small('retinanet', cfg).model) for cfg in (plain, norm_cfg))
    for value in stock.buffers():
        value.copy_(torch.rand(value.shape).to(value))
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.eval(), ours.eval()
    feats = [torch.randn(2, 16, 2**k, 2**k) for k in range(5, 0, -1)]
    with torch.no_grad():
        for one, other in zip(stock.bbox_head(feats)[0], ours.bbox_head(feats)[0]):
            torch.testing.assert_close(one, other)


def test_a_head_that_a_model_calls_twice_starts_anew_each_time():
    class Twice(BaseModel):
        def __init__(self, head):
            super().__init__()
            self.head = MODELS.build(head)

        def forward(self, feats):
            return self.head(feats), self.head(feats)

    MODELS.register_module(module=Twice, force=True)
    model = MODELS.build(dict(type='Twice', head=small('retinanet', PER_LEVEL[0]).model.bbox_head)).eval()
    first, second = model([torch.randn(2, 16, 2**k, 2**k) for k in range(5, 0, -1)])
    for one, other in zip(first[0], second[0]):
        assert torch.equal(one, other)


def test_a_head_that_no_registry_built_says_how_to_count():
    from mmdet.models import RetinaHead

    head = RetinaHead(2, 16, stacked_convs=1, feat_channels=16, norm_cfg=PER_LEVEL[1])
    with pytest.raises(ValueError, match=r'mmnorm.count_levels\(head\)'):
        head([torch.randn(2, 16, 4, 4)])


def test_recollection_per_level_mends_a_trained_detector():
    """What training normalizes call by call, evaluation does too, after statistics per level are recollected."""
    model = MODELS.build(small('retinanet', dict(type='BN')).model)
    model.init_weights()
    batches = [batch() for _ in range(2)]
    names = trained_by_batch(model)
    recollect(model, batches, training_forward, names)

    def worst():
        shifts = measure_shift(model, batches, lambda model, data: model.test_step(copy.deepcopy(data)))
        of_head = {name: shift for name, shift in shifts.items() if name.startswith('bbox_head.cls_convs.0')}
        return max(call.size for shift in of_head.values() for call in shift.calls or [shift])

    before = worst()
    assert len(per_level(model.bbox_head, 5)) == 4
    recollect(model, batches, training_forward, trained_by_batch(model))
    assert worst() < 0.3 * before and before > 0.3


def test_evalnorm_and_its_config():
    cfg = Config(dict(model=small('retinanet', PER_LEVEL[0]).model))
    model = MODELS.build(copy.deepcopy(cfg.model))
    assert 'bbox_head.cls_convs.0.bn.4' in to_evalnorm(model)
    new, twin = evalnorm_config(cfg, model, MODELS.build)
    assert new.model.bbox_head.norm_cfg == dict(type='PerLevel', norm=dict(type='EN', mode='offline'), levels=5)
    assert twin.state_dict().keys() == model.state_dict().keys()
