"""Evaluation of images of several sizes in one batch: the warning, and statistics of each image's own region."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine import registry
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

from mmnorm import SN
from mmnorm.blocks import norm_layers, padding_readers
from mmnorm.norms import checks
from mmnorm.openmmlab.padding import ValidRegionHook, normalize_valid_regions

from ..conftest import ROOT
from ..norms.cases import described, randomized

RETINANET = 'retinanet/retinanet_r18_fpn_1x_coco.py'
SIZES = [(180, 140), (192, 300)]  # padded to 192 x 160 and 192 x 320, divisor 32
WARNING = 'evaluates batches of images of several sizes'


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(checks, '_warned', set())


def detector(norm_cfg, base=RETINANET, everywhere=True, **options):
    config = Config.fromstring(f"_base_ = 'mmdet::{base}'", '.py')
    cfg = config.model
    init_default_scope('mmdet')
    cfg.backbone.update(depth=18, base_channels=16, init_cfg=None, norm_eval=False, frozen_stages=-1)
    cfg.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    cfg.test_cfg.update(nms_pre=10)
    for head in ('rpn_head', 'bbox_head'):
        if head in cfg:
            cfg[head].update(in_channels=32, feat_channels=32)
    if everywhere:
        cfg.backbone.norm_cfg = cfg.neck.norm_cfg = norm_cfg
    return built(config, options)


def built(config, options):
    config.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    model = MODELS.build(config.model)
    for layer in norm_layers(model).values():
        randomized(layer)
    return model.eval()


def batch(*sizes):
    generator = torch.Generator().manual_seed(0)
    return dict(
        inputs=[torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes],
        data_samples=[
            DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1, 1))) for size in sizes
        ],
    )


def first_of(data):
    return {key: value[:1] for key, value in data.items()}


@torch.no_grad()
def distances(model):
    """How far each level's features of an image alone are from those beside a wider one, relative to their size."""
    levels, data = [], batch(*SIZES)
    handle = model.neck.register_forward_hook(lambda module, args, outputs: levels.append(outputs))
    for part in (first_of(data), data):
        model.test_step(part)
    handle.remove()
    return [
        float((alone[0] - beside[0, :, : alone.shape[2], : alone.shape[3]]).norm() / alone.norm())
        for alone, beside in zip(*levels)
    ]


@pytest.fixture(scope='module')
def frozen():
    torch.manual_seed(0)
    return distances(detector(dict(type='FrozenBN')))


PER_SAMPLE = [
    dict(type='SN'),
    dict(type='RBN'),
    dict(type='IBN'),
    dict(type='EN', batch_size=1),
    dict(type='GW', num_groups=8),
    dict(type='GBGN', batch_groups='sample', channel_groups=8),
    dict(type='BGN', num_groups=24),
    dict(type='GN', num_groups=8),
    dict(type='IN'),
]


@pytest.mark.filterwarnings(f'ignore:.*{WARNING}')
@pytest.mark.parametrize('norm_cfg', PER_SAMPLE, ids=described)
def test_a_detector_is_as_close_to_the_image_alone_as_with_frozen_bn(norm_cfg, frozen):
    model = detector(norm_cfg)
    before = distances(model)
    normalize_valid_regions(model)
    after = distances(model)
    # what is left, max pooling and the convolutions without a norm carry, as they do with FrozenBN
    assert all(distance < yardstick for distance, yardstick in zip(after, frozen))
    assert max(before) > 5 * max(after)
    normalize_valid_regions(model, False)
    assert distances(model) == before


def warned(model, data, mode='predict'):
    """The warnings about padding of an evaluation, in full."""
    checks._warned.clear()
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter('always')
        for _ in range(2):
            model._run_forward(model.data_preprocessor(data, False), mode=mode)
    return [str(warning.message) for warning in caught if WARNING in str(warning.message)]


def test_the_warning_comes_when_it_should_and_once():
    model = detector(dict(type='SN'))
    (message,) = warned(model, batch(*SIZES))
    assert 'RetinaNet' in message and 'in 28 SN layers (first: backbone.bn1)' in message
    assert 'batch_size=1' in message and 'ValidRegionHook' in message
    assert len(warned(model, batch(*SIZES), 'tensor')) == 1
    assert not warned(model, batch(SIZES[0]))
    assert not warned(model, batch(SIZES[0], (190, 150)))  # padded to the same 192 x 160, as each is alone
    assert not warned(detector(dict(type='FrozenBN')), batch(*SIZES))
    normalize_valid_regions(model)
    assert not warned(model, batch(*SIZES))
    (message,) = warned(detector(dict(type='GN', num_groups=8)), batch(*SIZES))
    assert 'in 28 GN layers (first: backbone.gn1)' in message


def test_training_and_losses_are_left_alone():
    model = detector(dict(type='SN')).train()
    normalize_valid_regions(model)
    seen = []
    model.backbone.bn1.register_forward_hook(lambda layer, *_: seen.append('forward' in vars(layer)))
    data = batch(*SIZES)
    for sample in data['data_samples']:
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    model._run_forward(model.data_preprocessor(data, True), mode='loss')
    assert seen == [False]


def test_inputs_of_roi_heads_are_left_alone():
    """Two RoIs of 7 x 7, as many as images, in a batch of 224 x 224, where 7 x 7 is the map of stride 32."""
    norm_cfg = dict(type='SN')
    options = {
        'roi_head.bbox_roi_extractor.out_channels': 32,
        'roi_head.bbox_head.in_channels': 32,
        'roi_head.bbox_head.fc_out_channels': 32,
        'roi_head.bbox_head.type': 'Shared4Conv1FCBBoxHead',
        'roi_head.bbox_head.conv_out_channels': 32,
        'roi_head.bbox_head.norm_cfg': norm_cfg,
        'test_cfg.rpn.max_per_img': 1,
    }
    base = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    options |= {'backbone.norm_cfg': norm_cfg, 'test_cfg.rpn.nms_pre': 10}
    data = batch((224, 100), (224, 224))
    model = detector(norm_cfg, base, **options)
    normalize_valid_regions(model)
    seen = {}

    def look(name):
        return lambda layer, args, _: seen.update({name: (tuple(args[0].shape), 'forward' in vars(layer))})

    for name, layer in norm_layers(model).items():
        layer.register_forward_hook(look(name))
    with torch.no_grad():
        model.test_step(data)
    assert seen['backbone.bn1'] == ((2, 16, 112, 112), True)
    of_rois = {name: found for name, found in seen.items() if name.startswith('roi_head')}
    assert len(of_rois) == 4 and set(of_rois.values()) == {((2, 32, 7, 7), False)}
    # and alone they are no reason to warn
    assert not warned(
        detector(norm_cfg, base, everywhere=False, **options | {'backbone.norm_cfg': dict(type='BN')}), data
    )


class Network(BaseModel):
    """A model of no host, with mmengine's own data preprocessor."""

    def __init__(self):
        super().__init__(ImgDataPreprocessor(pad_size_divisor=8))
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), randomized(SN(8)), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), randomized(SN(8))
        )

    def forward(self, inputs, data_samples=None, mode='tensor'):
        maps = self.layers(inputs)
        for sample, of_image in zip(data_samples or (), maps):
            sample.map = of_image
        return data_samples if mode == 'predict' else maps


class Maps(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample['map'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(maps=results)


@pytest.mark.parametrize('batch_size, hooks', [(1, []), (2, []), (2, [dict(type='ValidRegionHook')])])
def test_one_line_of_a_config_makes_batches_evaluate_as_single_images(batch_size, hooks, tmp_path, recwarn):
    images = [torch.randn(3, *size) for size in ((13, 10), (16, 30))]
    samples = [
        dict(inputs=image, data_samples=BaseDataElement(metainfo=dict(img_shape=tuple(image.shape[1:]))))
        for image in images
    ]
    runner = Runner(
        Network(),
        str(tmp_path),
        test_dataloader=dict(
            batch_size=batch_size,
            dataset=samples,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=pseudo_collate,
        ),
        test_cfg={},
        test_evaluator=Evaluator(Maps()),
        custom_hooks=hooks,
        log_level='ERROR',
        experiment_name=f'{batch_size}{len(hooks)}',
    )
    maps = runner.test()['maps']
    with torch.no_grad():
        expected = [
            Network().eval().test_step({key: [value] for key, value in sample.items()})[0].map for sample in samples
        ]
    near = [
        torch.allclose(found[:, : own.shape[1], : own.shape[2]], own, atol=1e-5) for found, own in zip(maps, expected)
    ]
    assert near == [batch_size == 1 or bool(hooks), True]
    assert any(WARNING in str(warning.message) for warning in recwarn) is (batch_size == 2 and not hooks)


def test_test_time_augmentation():
    from mmdet.models import DetTTAModel

    init_default_scope('mmdet')
    detector_of_tta = detector(dict(type='SN'))
    model = DetTTAModel(
        module=detector_of_tta, tta_cfg=ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    )
    ValidRegionHook().before_run(SimpleNamespace(model=model))
    seen = []
    detector_of_tta.backbone.bn1.register_forward_hook(lambda layer, *_: seen.append('forward' in vars(layer)))
    augmented = [batch(*SIZES), batch(*SIZES)]
    for data in augmented:
        for sample in data['data_samples']:
            sample.set_metainfo(dict(flip=False, flip_direction=None))
    with torch.no_grad():
        model.eval().test_step({key: [data[key] for data in augmented] for key in augmented[0]})
    assert seen == [True, True]


def segmentor(**options):
    config = Config.fromfile(ROOT / 'configs/pspnet_xbn_r50_digits.py')
    config.model.backbone.update(norm_cfg=dict(type='SN'), norm_eval=False)
    config.model.decode_head.norm_cfg = dict(type='SN')
    init_default_scope('mmseg')
    return built(config, options)


def seg_samples(*shapes):
    from mmseg.structures import SegDataSample

    return [SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape)) for shape in shapes]


@pytest.mark.parametrize('padding', [dict(size_divisor=32), dict(size=(96, 96))])
def test_mmseg_pads_an_image_alone_as_in_a_batch(padding):
    """Its test batches are of one size, and padded to what an image alone is: there is nothing to say or to do."""
    model = segmentor(**{'data_preprocessor.test_cfg': padding, 'data_preprocessor.size': None})
    data = dict(inputs=[torch.randint(0, 255, (3, 50, 60), dtype=torch.uint8) for _ in range(2)])
    logits = []
    for on in (False, True):
        normalize_valid_regions(model, on)
        data['data_samples'] = seg_samples((50, 60), (50, 60))
        assert not warned(model, data)
        with torch.no_grad():
            logits.append(model.test_step(data)[0].seg_logits.data)
    with torch.no_grad():
        logits.append(model.test_step({key: value[:1] for key, value in data.items()})[0].seg_logits.data)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=0)
    torch.testing.assert_close(logits[2], logits[0])


def test_slide_inference_of_images_of_several_sizes_is_refused():
    model = segmentor(test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(32, 32)))
    data = dict(inputs=torch.randn(2, 3, 64, 64), data_samples=seg_samples((64, 32), (64, 64)))
    normalize_valid_regions(model)
    with pytest.raises(ValueError, match=r'the backbone of EncoderDecoder gets \(32, 32\).*slide inference'):
        model._run_forward(data, 'predict')
    assert not any('forward' in vars(layer) for layer in padding_readers(model).values())
    data['data_samples'] = seg_samples((64, 64), (64, 64))
    with torch.no_grad():
        assert len(model._run_forward(data, 'predict')) == 2


def test_the_hook_is_found_by_its_name():
    assert registry.HOOKS.get('ValidRegionHook') is registry.HOOKS.get('mmnorm.statistics.ValidRegionHook')
    assert registry.HOOKS.get('ValidRegionHook') is ValidRegionHook
