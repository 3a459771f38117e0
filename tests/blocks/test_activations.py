"""What placements do around the ReLUs of the hosts: IBN-Net-b's IN before one, thresholds (FRN, TLU) in their place."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.registry import MODELS as DET
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS as SEG
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmnorm.blocks import fuse_conv_norm, place_xbn
from mmnorm.norms import FRN, TLU, checks

try:
    from mmpretrain.registry import MODELS as PRE
except ImportError:
    PRE = None

IBN_B = dict(position='end', stages=(0, 1), stem=True, norm_cfg=dict(type='IN', affine=True))
NARROW = dict(base_channels=8, norm_eval=False)
R18 = dict(type='ResNet', depth=18, **NARROW)
R50 = dict(type='ResNet', depth=50, **NARROW)
HOSTS = {
    'mmdet': (DET, R18),
    'mmdet, deep blocks': (DET, R50),
    'mmdet, checkpointed': (DET, dict(R50, with_cp=True)),
    'mmdet, grouped': (DET, dict(R50, type='ResNeXt', groups=2, base_width=64)),
    'mmseg': (SEG, dict(R50, type='ResNetV1c')),
    'mmseg, shallow': (SEG, R18),
    'mmpretrain': (PRE, dict(R18, stem_channels=8)),
    'mmpretrain, deep blocks': (PRE, dict(R50, stem_channels=8, drop_path_rate=0.1, with_cp=True)),
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())


@pytest.fixture(params=HOSTS)
def host(request):
    registry, cfg = HOSTS[request.param]
    if registry is None:
        pytest.skip('mmpretrain is not installed')
    return registry, cfg


def twin(host, **xbn):
    registry, cfg = host
    return registry.build(dict(cfg, type=f'XBN{cfg["type"]}', xbn=xbn))


def results(backbone, x=X):
    """Outputs and gradients of one step."""
    torch.manual_seed(0)
    outputs = backbone(x.clone().requires_grad_())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(out.square().mean() for out in outputs).backward()
    return [out.detach() for out in outputs], {name: p.grad for name, p in backbone.named_parameters()}


def assert_equal(one, other):
    for out, same in zip(one[0], other[0], strict=True):
        assert torch.equal(out, same)
    assert set(one[1]) == set(other[1])
    for name, grad in one[1].items():
        assert (grad is None) == (other[1][name] is None) and (grad is None or torch.equal(grad, other[1][name])), name


def test_a_block_computes_the_same_around_the_new_layer(host):
    """A layer that changes nothing changes nothing: each call of the ReLU is where it was."""
    registry, cfg = host
    backbone = registry.build(cfg)
    placed = twin(host, position='end', norm_cfg=dict(type='IN', affine=True)).train()
    assert len(placed.xbn_layers) == 4
    placed.load_state_dict(backbone.state_dict() | {k: v for k, v in placed.state_dict().items() if '.IN.' in k})
    for name in placed.xbn_layers:
        placed.set_submodule(name, nn.Identity())
    assert_equal(results(placed), results(backbone))


def test_the_layer_takes_the_addition_and_a_relu_follows(host):
    placed = twin(host, **IBN_B).train()
    block = placed.layer2[-1]
    assert placed.xbn_layers[1:] == [f'layer{stage}.{len(getattr(placed, f"layer{stage}")) - 1}.IN' for stage in (1, 2)]
    assert type(block.IN) is nn.InstanceNorm2d and type(placed.get_submodule(placed.xbn_layers[0])) is nn.InstanceNorm2d
    seen = {}
    block.IN.register_forward_hook(lambda layer, inputs, output: seen.update(sum=inputs[0], normalized=output.clone()))
    out = block(torch.randn(2, placed.layer1[-1].IN.num_features, 8, 8).repeat(1, 2, 1, 1))
    assert seen['sum'].min() < 0
    assert torch.equal(out, seen['normalized'].relu())


def test_it_is_what_the_authors_compute():
    """The authors' resnet18_ibn_b (github.com/XingangPan/IBN-Net, ibnnet/resnet_ibn.py) was run once beside ours, in
    float64 and training mode, with these parameters and input: the same names of tensors, and these figures."""
    backbone = DET.build(dict(type='XBNResNet', depth=18, norm_eval=False, xbn=IBN_B)).double().train()
    generator, state = torch.Generator().manual_seed(0), backbone.state_dict()
    for name in sorted(state):
        if state[name].is_floating_point():
            noise = torch.rand(state[name].shape, generator=generator, dtype=torch.float64)
            vector = noise.dim() == 1
            state[name].copy_(noise + 0.5 if vector else (noise - 0.5) * (12 / noise[0].numel()) ** 0.5)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs, gradients = results(backbone, x)
    squares = [float(out.square().mean()) for out in outputs]
    assert squares == pytest.approx([2.2371454409, 2.0163868724, 12.5113197932, 12.2885589674], rel=1e-9)
    theirs = {
        'conv1.weight': 2.1308376172,
        'bn1.weight': 0.1176189600,
        'layer1.1.IN.weight': 0.2384073603,
        'layer2.0.conv1.weight': 1.9259292435,
    }
    assert {name: float(gradients[name].norm()) for name in theirs} == pytest.approx(theirs, rel=1e-8)


def test_a_bn_checkpoint_loads_and_what_is_new_is_said(host):
    registry, cfg = host
    backbone, placed = registry.build(cfg), twin(host, **IBN_B)
    with pytest.warns(UserWarning, match=r'has no layers between addition and ReLU \(layer1\.\d\.IN, layer2\.\d\.IN\)'):
        load_state_dict(placed, backbone.state_dict(), strict=True)
    theirs = backbone.state_dict()
    for key, value in placed.state_dict().items():
        assert torch.equal(value, theirs[key] if key in theirs else torch.full_like(value, float('weight' in key))), key


def test_a_pretrained_file_with_a_classifier_is_taken(tmp_path):
    """The authors' files have the names of ours, and ``fc`` beside."""
    placed = twin((DET, R18), **IBN_B)
    nn.init.uniform_(placed.layer2[1].IN.bias)
    weights = placed.state_dict() | {'fc.weight': torch.ones(3, 64)}
    torch.save(weights, tmp_path / 'ibn_b.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ibn_b.pth'))
    other = twin((DET, dict(R18, init_cfg=init_cfg)), **IBN_B)
    other.init_weights()
    assert all(torch.equal(value, weights[key]) for key, value in other.state_dict().items())


def test_its_own_checkpoint_loads_in_silence_and_copies_compute_the_same():
    placed = twin((DET, R18), **IBN_B)
    nn.init.uniform_(placed.layer1[1].IN.weight)
    again = twin((DET, R18), **IBN_B)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_state_dict(again, placed.state_dict(), strict=True)
    expected = results(placed.eval())
    for other in (again.eval(), copy.deepcopy(placed), pickle.loads(pickle.dumps(placed))):
        other.zero_grad()
        assert_equal(results(other), expected)


def test_frozen_stages_freeze_it():
    placed = twin((DET, dict(R18, frozen_stages=1)), **IBN_B)
    trains = {name: placed.get_submodule(name).weight.requires_grad for name in placed.xbn_layers}
    assert trains == {'bn1': False, 'layer1.1.IN': False, 'layer2.1.IN': True}


@pytest.mark.parametrize('fuse', [fuse_conv_bn, fuse_conv_norm])
def test_folding_bns_keeps_what_it_computes(fuse):
    placed = twin((DET, R18), **IBN_B)
    with torch.no_grad():
        placed.train()(X)
        expected = placed.eval()(X)
        fuse(placed)
        for out, same in zip(placed(X), expected, strict=True):
            torch.testing.assert_close(out, same, rtol=1e-4, atol=1e-4)
    assert any(type(module) is nn.Identity for name, module in placed.named_modules() if name.endswith('bn1'))


@pytest.mark.parametrize(
    'cfg, error, message',
    [
        (
            dict(R18, xbn=dict(position='end', every=2)),
            ValueError,
            "position='end' goes with stages and stem",
        ),
        (dict(R18, xbn=dict(position='end', scope='full')), ValueError, "position='end' goes with stages and stem"),
        (dict(R18, xbn=dict(position='start')), ValueError, "must be 1, 2, 3, a tuple of them, or 'end', got 'start'"),
        (
            dict(type='MobileNetV2', widen_factor=0.5, xbn=dict(position='end')),
            TypeError,
            r'\(InvertedResidual\): its ReLU cannot be moved, its forward pass is not that of the hosts',
        ),
        (
            dict(R50, plugins=[dict(cfg=dict(type='ContextBlock', ratio=1), position='after_conv3')], xbn=IBN_B),
            TypeError,
            r'layer1.2 \(Bottleneck\): its ReLU cannot be moved, since its plugins',
        ),
    ],
)
def test_what_it_cannot_be_placed_in_is_refused(cfg, error, message):
    with torch.device('meta'), pytest.raises(error, match=message):
        DET.build(dict(cfg, type=f'XBN{cfg["type"]}'))


def test_another_activation_is_refused():
    backbone = DET.build(R18)
    backbone.layer4[-1].relu = nn.GELU()
    with pytest.raises(TypeError, match=r'layer4.1 \(BasicBlock\): its activation is GELU, only that of a ReLU'):
        place_xbn(backbone, **IBN_B | dict(stages=(3,)))


# ---------------------------------------------------------------------------------------------------------------------
# thresholds
THRESHOLDS = dict(scope='full', norm_cfg=dict(type='FRN', tlu=True))
DEEP_STEMS = {
    'mmdet, deep stem': (DET, dict(R18, type='ResNetV1d')),
    'mmpretrain, deep stem': (PRE, dict(R18, type='ResNetV1c', stem_channels=8)),
    'mmpretrain, small images': (PRE, dict(R18, type='ResNet_CIFAR', stem_channels=8)),
    'mmpretrain, RegNet': (PRE, dict(type='RegNet', arch='regnetx_400mf', norm_eval=False)),
    'mmpretrain, ShuffleNetV2': (PRE, dict(type='ShuffleNetV2', widen_factor=0.5)),
}


class Cut(nn.Module):
    """What a ReLU becomes whose thresholds are all the same."""

    def forward(self, x):
        return x.clamp(min=-0.5)


class CountingReLUs(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        relus = torch.ops.aten.relu.default, torch.ops.aten.relu_.default
        self.count += function in relus and args[0].dim() == 4  # of maps; the plane takes one of variances
        return function(*args, **kwargs or {})


@pytest.mark.parametrize('name', [*HOSTS, *DEEP_STEMS])
def test_thresholds_are_where_the_relus_were(name):
    """The twin with FRN everywhere, each of whose ReLUs cuts at -0.5, is the one whose thresholds are all -0.5."""
    registry, cfg = (HOSTS | DEEP_STEMS)[name]
    if registry is None:
        pytest.skip('mmpretrain is not installed')
    host = twin((registry, cfg), scope='full', norm_cfg=dict(type='FRN'))
    placed = twin((registry, cfg), **THRESHOLDS)
    assert {*placed.load_state_dict(host.state_dict(), strict=False).missing_keys} == {
        name for name, _ in placed.named_parameters() if name.endswith('tau')
    }
    for part in list(host.modules()):
        for leaf, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, leaf, Cut())
    thresholds = [p for name, p in placed.named_parameters() if name.endswith('tau')]
    with torch.no_grad():
        for tau in thresholds:
            tau.fill_(-0.5)
    relus = CountingReLUs()
    with relus:
        outputs, gradients = results(placed)
    expected = results(host)
    assert relus.count == 0 and thresholds
    assert_equal((outputs, {name: gradients[name] for name in expected[1]}), expected)
    assert all(gradients[f'{name}.tau'].abs().sum() > 0 for name, m in placed.named_modules() if isinstance(m, TLU))


def test_thresholds_start_as_relus():
    placed, plain = (twin((DET, R18), scope='full', norm_cfg=dict(type='FRN', tlu=tlu)) for tlu in (True, False))
    load_state_dict(placed, plain.state_dict())
    with CountingReLUs() as relus:
        expected = plain(X)
    assert relus.count > 0
    for out, same in zip(placed(X), expected, strict=True):
        assert torch.equal(out, same)


@pytest.mark.parametrize('position, own, tlus', [(1, 1, 0), (2, 1, 0), (3, 0, 1), ((1, 2), 2, 0), ((1, 2, 3), 2, 1)])
def test_a_relu_without_a_threshold_before_it_stays(position, own, tlus):
    """Of a Bottleneck's three, each block; the stem has one beside."""
    placed = twin((DET, R50), position=position, norm_cfg=dict(type='FRN', tlu=True))
    with CountingReLUs() as counted:
        placed(X)
    assert counted.count == 1 + 16 * (3 - own - tlus)
    assert sum(isinstance(module, TLU) for module in placed.modules()) == 16 * tlus
    with_threshold = [name for name, m in placed.named_modules() if isinstance(m, FRN) and m.tlu]
    assert len(with_threshold) == 16 * own


@pytest.mark.parametrize('fixed', [dict(frozen=True), dict(requires_grad=False)])
def test_a_frozen_norm_has_frozen_thresholds(fixed):
    placed = twin((DET, R18), scope='full', norm_cfg=dict(type='FRN', tlu=True, **fixed))
    trains = {name for name, parameter in placed.named_parameters() if parameter.requires_grad}
    assert trains == {name for name, _ in placed.named_parameters() if '.conv' in f'.{name}' or 'downsample.0' in name}


def test_a_deep_stems_last_norm_takes_its_own_relu_only():
    placed = twin((DET, dict(R18, type='ResNetV1d')), position=1, stem=True, norm_cfg=dict(type='FRN', tlu=True))
    assert [type(placed.stem[i]) for i in (2, 5, 8)] == [nn.ReLU, nn.ReLU, nn.Identity] and placed.stem[7].tlu


def test_a_bn_checkpoint_loads_with_thresholds():
    host, placed = DET.build(R18), twin((DET, R18), **THRESHOLDS)
    load_state_dict(placed, host.state_dict())
    theirs = host.state_dict()
    assert all(torch.equal(p, theirs[name]) for name, p in placed.named_parameters() if not name.endswith('tau'))


@pytest.mark.parametrize(
    'cfg, places',
    [
        (dict(R18, norm_cfg=dict(type='FRN', tlu=True)), r'in 17 places \(gn1, layer1.0.gn1, layer1.0.gn2\)'),
        (
            dict(
                type='ConvFCBBoxHead',
                in_channels=8,
                conv_out_channels=8,
                num_shared_convs=2,
                fc_out_channels=8,
                norm_cfg=dict(type='FRN', tlu=True),
            ),
            r'in 2 places \(shared_convs.0.gn, shared_convs.1.gn\)',
        ),
    ],
)
def test_a_relu_behind_a_threshold_is_said_once(cfg, places):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        DET.build(cfg)
    said = [str(warning.message) for warning in said if 'tlu' in str(warning.message)]
    assert len(said) == 1 and re.search(f'a ReLU follows FRN with tlu=True {places}', said[0])


@pytest.mark.parametrize(
    'cfg',
    [
        dict(R50, type='XBNResNet', xbn=THRESHOLDS),
        dict(R50, type='XBNResNet', xbn=dict(norm_cfg=dict(type='FRN', tlu=True))),
        dict(R18, norm_cfg=dict(type='FRN')),
        dict(type='FPN', in_channels=[8, 8], out_channels=8, num_outs=2, norm_cfg=dict(type='FRN', tlu=True)),
    ],
)
def test_where_none_follows_nothing_is_said(cfg):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        DET.build(cfg)


@pytest.mark.parametrize(
    'cfg, error, message',
    [
        (
            dict(type='MobileNetV2', widen_factor=0.5, xbn=THRESHOLDS),
            TypeError,
            r'conv1.bn \(ConvModule\): its activation is ReLU6, only that of a ReLU can be moved',
        ),
        (dict(R18, xbn=THRESHOLDS | dict(scope=None, position='end')), ValueError, "at position='end' a ReLU follows"),
    ],
)
def test_what_has_no_relu_to_take_is_refused(cfg, error, message):
    with torch.device('meta'), pytest.raises(error, match=message):
        DET.build(dict(cfg, type=f'XBN{cfg["type"]}'))


CONFIGS = {
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': DET,
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': SEG,
    'mmpretrain::resnet/resnet50_8xb32_in1k.py': PRE,
}


@pytest.mark.parametrize('xbn, norms, tlus', [(IBN_B, 3, 0), (THRESHOLDS, 53, 16)])
@pytest.mark.parametrize('base', CONFIGS)
def test_a_hosts_config_says_it_by_one_key(tmp_path, base, xbn, norms, tlus):
    if CONFIGS[base] is None:
        pytest.skip('mmpretrain is not installed')
    deep_stem = base.startswith('mmseg')
    kind = 'XBNResNetV1c' if deep_stem else 'XBNResNet'
    (tmp_path / 'config.py').write_text(f'_base_ = {base!r}\nmodel = dict(backbone=dict(type={kind!r}, xbn={xbn!r}))')
    backbone = Config.fromfile(tmp_path / 'config.py').model.backbone | dict(base_channels=8, init_cfg=None)
    placed = CONFIGS[base].build(
        backbone | (dict(stem_channels=8) if base.startswith('mmpretrain') or deep_stem else {})
    )
    assert len(placed.xbn_layers) == norms + (2 if deep_stem and tlus else 0)
    assert sum(isinstance(module, TLU) for module in placed.modules()) == tlus
    placed.train()
    outputs, gradients = results(placed)
    assert all(out.isfinite().all() for out in outputs)
    unfrozen = {name for name, parameter in placed.named_parameters() if parameter.requires_grad}
    assert unfrozen == {name for name, gradient in gradients.items() if gradient is not None}
