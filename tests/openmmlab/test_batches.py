"""A training's batches and its forward pass outside of a training."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from mmnorm.openmmlab.batches import training_batches, training_forward
from mmnorm.statistics import collect_moments, evaluating

NARROW = {
    'yolox/yolox_tiny_8xb8-300e_coco.py': {},
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': {
        'model.backbone.init_cfg': None,
        'model.backbone.norm_eval': False,
        'model.num_queries': 10,
        'model.encoder.num_layers': 1,
        'model.decoder.num_layers': 1,
    },
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': {'model.backbone.init_cfg': None},
}


@pytest.mark.parametrize('path', NARROW)
def test_detectors_that_train_in_another_way_than_they_test(path):
    cfg = Config.fromstring(f"_base_ = 'mmdet::{path}'", '.py')
    cfg.merge_from_dict(NARROW[path])
    init_default_scope('mmdet')
    MessageHub.get_instance('training_forward')
    for key in ('iter', 'epoch', 'max_iters', 'max_epochs'):
        MessageHub.get_current_instance().update_info(key, 1)
    model = MODELS.build(cfg.model)
    model.init_weights()  # Deformable DETR's level embedding is whatever was in the memory before
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(64, 64), batch_input_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1), pad_shape=(64, 64)
        )
    )
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
    batch = dict(inputs=[torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)], data_samples=[sample])
    with evaluating(model), collect_moments(model) as collected:
        training_forward(model, batch)
        assert not any(module.training for module in model.modules())
    assert collected['input'].batches == 1 and sum(seen.batches > 0 for seen in collected.values()) > 10


class Modes(nn.Module):
    """Says in which mode each of its layers ran."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Dropout(), nn.BatchNorm2d(3), nn.Identity()])

    def data_preprocessor(self, batch, training):
        return dict(inputs=batch)

    def _run_forward(self, data, mode):
        self.seen = [self.training, *(layer.training for layer in self.layers)]
        if data['inputs'] is None:
            raise TypeError('no epoch')


def test_norms_and_dropout_keep_their_modes():
    model = Modes().eval()
    model.layers[1].training = True
    training_forward(model, 1)
    assert model.seen == [True, False, True, True]
    assert [model.training, *(layer.training for layer in model.layers)] == [False, False, True, False]
    with pytest.raises(ValueError, match='Modes does not compute its losses outside of a training .TypeError: no ep'):
        training_forward(model, None)
    assert not model.training


def test_mixed_sources_are_refused():
    with pytest.raises(ValueError, match='labeled and unlabeled'):
        training_batches(dict(sampler=dict(type='GroupMultiSourceSampler'), dataset={}), 3)
