"""mmpretrain as host: norms by one key, and twins of XBN backbones whose weights those of mmdet and mmseg take."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS as DET
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS as ROOT
from mmseg.registry import MODELS as SEG

from mmnorm import norms
from mmnorm.engine.preflight import unfit_weights
from mmnorm.norms import checks
from mmnorm.openmmlab.pretrained import place_of

pytest.importorskip('mmpretrain')
from mmpretrain.registry import MODELS as PRE
from mmpretrain.structures import DataSample

HOSTS = dict(mmdet=DET, mmseg=SEG)
NARROW = dict(stem_channels=16, base_channels=16)
RESNET = dict(type='XBNResNet', depth=50, **NARROW)
GROUPED = dict(type='XBNResNeXt', depth=50, groups=32)
#: A backbone of mmpretrain, and the config of its twin where that is another
OTHERS = [
    ('mmdet', dict(type='XBNResNet', depth=18, **NARROW), None),
    ('mmdet', dict(GROUPED, width_per_group=4), dict(GROUPED, base_width=4)),
    ('mmseg', dict(GROUPED, width_per_group=4), dict(GROUPED, base_width=4)),
    ('mmseg', dict(RESNET, type='XBNResNetV1c'), None),
    ('mmseg', dict(RESNET, type='XBNResNetV1d'), None),
    ('mmdet', dict(RESNET, type='XBNResNetV1d'), None),
    ('mmdet', dict(type='XBNRegNet', arch='regnetx_400mf'), None),
    ('mmdet', dict(type='XBNMobileNetV2', xbn=dict(stem=True)), None),
    ('mmseg', dict(type='XBNMobileNetV2', out_indices=(5, 6)), None),
    ('mmdet', dict(type='XBNShuffleNetV2', widen_factor=0.5, out_indices=(3,)), None),
    ('mmseg', dict(type='XBNShuffleNetV2', widen_factor=1.0, out_indices=(3,)), None),
]


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())


@pytest.mark.parametrize('name', norms.NORMS)
def test_a_classifier_has_any_norm_by_one_key(name):
    assert PRE.get(name) is ROOT.get(name)
    classifier = PRE.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type=name), **NARROW),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='CrossEntropyLoss')),
        )
    )
    assert sum(type(module) is PRE.get(name) for module in classifier.modules()) == 20
    classifier.train()
    images, labels = torch.randn(4, 3, 64, 64), [DataSample().set_gt_label(i) for i in range(4)]
    classifier.loss(images, labels)['loss'].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in classifier.parameters())
    classifier.eval()
    scores = [sample.pred_score for sample in classifier.predict(images)]
    torch.testing.assert_close(torch.stack(scores).sum(1), torch.ones(4))


def pretrained(cfg, path):
    """Write the checkpoint of a backbone of mmpretrain whose weights and statistics are no initial ones."""
    backbone = PRE.build(dict(cfg))
    backbone.init_weights()
    backbone.train()
    for _ in range(2):
        features = backbone(torch.randn(2, 3, 64, 64))[-1]
    for parameter in backbone.parameters():
        parameter.data += 0.1 * torch.rand_like(parameter)
    classifier = torch.nn.ModuleDict(dict(backbone=backbone, head=torch.nn.Linear(features.shape[1], 10)))
    torch.save(dict(state_dict=classifier.state_dict()), path)
    return backbone.eval()


def loaded(cfg, host, path):
    """The twin of a backbone, of another host, with what it was trained to."""
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    twin = (HOSTS | dict(mmpretrain=PRE))[host].build(dict(cfg, init_cfg=init_cfg))
    twin.init_weights()
    return twin.eval()


def assert_same(backbone, twin):
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        ours, theirs = twin(x)[-1], backbone(x)[-1]
    assert ours.isfinite().all() and torch.equal(ours, theirs)


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize(
    'xbn',
    [
        dict(position=1),
        dict(position=2),
        dict(position=3),
        dict(position=(1, 3)),
        dict(every=2, stem=True),
        dict(every=4, norm_cfg=dict(type='IN', affine=True)),
        dict(scope='full', norm_cfg=dict(type='GN', num_groups=8)),
        dict(norm_cfg=dict(type='GW', num_groups=8)),
    ],
    ids=str,
)
def test_a_pretrained_resnet_computes_the_same_in_its_twins(xbn, host, tmp_path):
    backbone = pretrained(dict(RESNET, xbn=xbn), tmp_path / 'classifier.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        twin = loaded(dict(RESNET, xbn=xbn), host, tmp_path / 'classifier.pth')
    assert list(twin.state_dict()) == list(backbone.state_dict()) and twin.xbn_layers == backbone.xbn_layers
    assert_same(backbone, twin)


@pytest.mark.parametrize('host, cfg, own', OTHERS, ids=[f'{cfg["type"]} of {host}' for host, cfg, _ in OTHERS])
def test_a_pretrained_backbone_of_any_kind_computes_the_same_in_its_twin(host, cfg, own, tmp_path):
    backbone = pretrained(cfg, tmp_path / 'classifier.pth')
    twin = loaded(own or cfg, host, tmp_path / 'classifier.pth')
    # mmpretrain has other names in deep stems, and than mmdet in MobileNetV2
    if 'V1' in cfg['type'] or (host, cfg['type']) == ('mmdet', 'XBNMobileNetV2'):
        torch.save({f'backbone.{key}': value for key, value in twin.state_dict().items()}, tmp_path / 'twin.pth')
        assert_same(twin, loaded(cfg, 'mmpretrain', tmp_path / 'twin.pth'))
    else:
        assert set(twin.state_dict()) <= set(backbone.state_dict())
    assert [type(m) for m in twin.modules()].count(torch.nn.GroupNorm) == len(backbone.xbn_layers)
    assert_same(backbone, twin)


BROKEN = {
    'another placement': (dict(xbn=dict(position=1)), 'norms in other places'),
    'another stem': (dict(xbn=dict(stem=True)), r'it lacks 2 of \d+ tensors \(bn1.running_mean, bn1.running_var\)'),
    'more depth': (dict(depth=101), 'its layer3 has 23 blocks, that of the backbone 6'),
    'less depth': (dict(depth=18), r'layer1.0.conv1.weight: \(16, 16, 3, 3\), and \(16, 16, 1, 1\) in the backbone'),
    'another width': (dict(base_channels=32), r'layer1.0.conv1.weight: \(32, 16, 1, 1\), and \(16, 16, 1, 1\)'),
}


@pytest.mark.parametrize('other, message', BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize('host', HOSTS)
def test_a_pretraining_of_another_network_is_not_loaded_in_part(other, message, host, tmp_path):
    theirs = dict(RESNET, **other)
    classifier = torch.nn.ModuleDict(dict(backbone=PRE.build(theirs)))
    torch.save(dict(state_dict=classifier.state_dict()), tmp_path / 'classifier.pth')
    checkpoint = str(tmp_path / 'classifier.pth')
    twin = HOSTS[host].build(dict(RESNET, init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')))
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    with pytest.raises(ValueError, match=message) as raised:
        twin.init_weights()
    assert f'XBNResNet: {checkpoint} is not its pretraining' in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


def test_a_pretraining_that_is_downloaded_has_to_fit_too(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    address = 'https://host/xbn-12345678.pth'
    place_of(address).parent.mkdir(parents=True)
    torch.save(PRE.build(dict(RESNET, depth=101)).state_dict(), place_of(address))
    twin = DET.build(dict(RESNET, init_cfg=dict(type='Pretrained', checkpoint=address)))
    with pytest.raises(ValueError, match=f'XBNResNet: {address} is not its pretraining: its layer3 has 23 blocks'):
        twin.init_weights()


@pytest.mark.parametrize('host', HOSTS)
def test_a_pretraining_of_averages_or_of_half_precision_is_loaded_as_such(host, tmp_path):
    """As mmengine's EMAHook saves it, whose averages are the weights; in float32, with the values of the halves."""
    classifier = torch.nn.ModuleDict(dict(backbone=PRE.build(RESNET)))
    runner = SimpleNamespace(model=classifier, iter=0, epoch=0)
    ema = EMAHook(momentum=0.5)
    ema.before_run(runner)
    ema.after_train_iter(runner, 0)  # which takes the weights as they are
    for parameter in classifier.parameters():
        parameter.data += 1
    ema.after_train_iter(runner, 1)
    checkpoint = dict(state_dict=classifier.state_dict())
    ema.before_save_checkpoint(runner, checkpoint)
    averages = {key.removeprefix('backbone.'): value for key, value in checkpoint['state_dict'].items()}
    last = classifier.state_dict()['backbone.conv1.weight']
    assert not torch.allclose(averages['conv1.weight'], last) and 'ema_state_dict' in checkpoint

    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth'), prefix='backbone.')
    for dtype in (torch.float32, torch.float16):
        stored = {f'backbone.{key}': v.to(dtype) if v.is_floating_point() else v for key, v in averages.items()}
        torch.save(dict(checkpoint, state_dict=stored), tmp_path / 'classifier.pth')
        twin = HOSTS[host].build(dict(RESNET, init_cfg=init_cfg))
        twin.init_weights()
        for key, value in twin.state_dict().items():
            assert value.dtype == averages[key].dtype, key
            assert torch.equal(value, stored[f'backbone.{key}'].to(value.dtype)), key
        cfg = Config(dict(default_scope=host, model=dict(backbone=dict(RESNET, init_cfg=init_cfg))))
        assert unfit_weights(cfg) == []


def test_a_whole_classifier_needs_a_prefix_and_weights_must_be_finite(tmp_path):
    backbone = pretrained(RESNET, tmp_path / 'classifier.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'classifier.pth'))
    with pytest.raises(ValueError, match="those below 'backbone.' are: give init_cfg prefix='backbone.'"):
        DET.build(dict(RESNET, init_cfg=init_cfg)).init_weights()
    backbone.bn1.running_var[3] = float('inf')
    torch.save(backbone.state_dict(), tmp_path / 'classifier.pth')
    with pytest.raises(ValueError, match='NaN or infinity in 1 of its tensors'):
        DET.build(dict(RESNET, init_cfg=init_cfg)).init_weights()
