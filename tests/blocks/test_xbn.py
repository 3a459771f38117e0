import copy
import re
import warnings
from collections import Counter

import pytest
import torch
from mmdet.registry import MODELS as DET
from mmengine.registry import MODELS as ROOT
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS as SEG
from torch import nn

from mmnorm.blocks import place_xbn
from mmnorm.norms import RBN, FrozenBN, checks

# blocks, norms of a block, downsamples
NETWORKS = {
    'resnet18': (dict(type='XBNResNet', depth=18), 8, 2, 3),
    'resnet50': (dict(type='XBNResNet', depth=50), 16, 3, 4),
    'resnet101': (dict(type='XBNResNet', depth=101), 33, 3, 4),
    'resnext101': (dict(type='XBNResNeXt', depth=101, groups=32, base_width=8), 33, 3, 4),
}
XBN_R18 = dict(type='XBNResNet', depth=18, base_channels=8)


def build(cfg, registry=DET, **kwargs):
    with torch.device('meta'):
        return registry.build(dict(cfg, **kwargs))


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())


@pytest.mark.parametrize('every', [1, 2, 4, 8])
@pytest.mark.parametrize('position', [1, 2, 3])
@pytest.mark.parametrize('name', NETWORKS)
def test_placement_is_counted(name, position, every):
    cfg, blocks, norms, downsamples = NETWORKS[name]
    if position > norms:
        with pytest.raises(ValueError, match=rf'layer\d.\d \(BasicBlock\) has no norm at position {position}'):
            build(cfg, xbn=dict(position=position, every=every))
        return
    backbone = build(cfg, xbn=dict(position=position, every=every))
    kinds = Counter(type(m) for m in backbone.modules())
    assert kinds[nn.GroupNorm] == blocks // every
    assert kinds[nn.BatchNorm2d] == 1 + blocks * norms + downsamples - blocks // every
    numbered = [
        (f'{stage}.{i}', block) for stage in backbone.res_layers for i, block in enumerate(getattr(backbone, stage))
    ]
    for number, (block_name, block) in enumerate(numbered, start=1):
        placed = [p for p in range(1, norms + 1) if isinstance(getattr(block, f'bn{p}'), nn.GroupNorm)]
        assert placed == ([position] if number % every == 0 else []), block_name


@pytest.mark.parametrize('name', NETWORKS)
def test_blocks_may_be_counted_anew_in_each_stage(name):
    backbone = build(NETWORKS[name][0], xbn=dict(every=2, counted='stage', stages=(0, 2), stem=True))
    norm = 'bn1' if name == 'resnet18' else 'bn2'
    of_stages = [f'layer{k}.{i}.{norm}' for k in (1, 3) for i in range(1, len(getattr(backbone, f'layer{k}')), 2)]
    assert backbone.xbn_layers == ['bn1', *of_stages]


@pytest.mark.parametrize('depth, expected', [(18, 'bn1'), (50, 'bn2')])
def test_default_position(depth, expected):
    names = build(dict(type='XBNResNet', depth=depth)).xbn_layers
    assert names and all(name.endswith(expected) for name in names)


def test_full_scope_replaces_every_norm():
    backbone = build(dict(type='XBNResNet', depth=50), xbn=dict(scope='full'))
    assert len(backbone.xbn_layers) == 1 + 16 * 3 + 4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


@pytest.mark.parametrize(
    'stages, stem, counted',
    [
        ((3,), False, 3 * 3 + 1),  # rbn, Table 4: one stage, its downsample included
        ((0, 2), True, 1 + (3 + 6) * 3 + 2),
        ((0, 1, 2, 3), False, 16 * 3 + 4),
    ],
)
def test_full_scope_keeps_to_its_stages(stages, stem, counted):
    backbone = build(
        dict(type='XBNResNet', depth=50), xbn=dict(scope='full', stages=stages, stem=stem, norm_cfg=dict(type='RBN'))
    )
    assert sum(isinstance(m, RBN) for m in backbone.modules()) == len(backbone.xbn_layers) == counted
    layers = {name.partition('.')[0] for name in backbone.xbn_layers}
    assert layers == {f'layer{stage + 1}' for stage in stages} | ({'bn1'} if stem else set())
    for stage, layer in enumerate(backbone.res_layers):
        kinds = {type(m) for m in getattr(backbone, layer).modules() if isinstance(m, nn.BatchNorm2d)}
        assert kinds == {RBN if stage in stages else nn.BatchNorm2d}


def test_full_scope_with_a_deep_stem_takes_all_of_its_norms():
    names = build(dict(type='XBNResNetV1d', depth=18), xbn=dict(scope='full', stages=(1,), stem=True)).xbn_layers
    assert [name for name in names if name.startswith('stem')] == ['stem.1', 'stem.4', 'stem.7']
    assert all(name.startswith(('stem', 'layer2')) for name in names)


def test_stages_stem_and_several_positions():
    backbone = build(dict(type='XBNResNet', depth=50), xbn=dict(stem=True, stages=(2, 3), position=(1, 2)))
    assert backbone.xbn_layers[:3] == ['bn1', 'layer3.0.bn1', 'layer3.0.bn2']
    assert len(backbone.xbn_layers) == 1 + 2 * (6 + 3)


@pytest.mark.parametrize('registry', [DET, SEG])
def test_deep_stem_means_the_last_of_its_norms(registry):
    names = build(dict(type='XBNResNetV1d', depth=18), registry, xbn=dict(stem=True)).xbn_layers
    assert names[0] == 'stem.7' and not any(name.startswith('stem') for name in names[1:])


@pytest.mark.parametrize(
    'norm_cfg, kind', [(dict(type='IN'), nn.InstanceNorm2d), (dict(type='GN', num_groups=32), nn.GroupNorm)]
)
def test_norm_cfg(norm_cfg, kind):
    backbone = build(dict(type='XBNResNetV1c', depth=50), SEG, xbn=dict(norm_cfg=norm_cfg))
    assert sum(isinstance(m, kind) for m in backbone.modules()) == 16


def test_more_groups_than_channels_means_as_many_as_channels():
    assert build(XBN_R18).layer1[0].bn1.num_groups == 8


@pytest.mark.parametrize(
    'xbn, message',
    [
        (
            dict(norm_cfg=dict(type='GN', num_groups=6)),
            r'xbn: layer1.0.bn1: GN: num_groups=6 does not divide 8 channels; choose one of 1, 2, 4, 8',
        ),
        (dict(position=4), r"position must be 1, 2, 3, a tuple of them, or 'end', got 4"),
        (dict(every=0), r'every must be a positive integer'),
        (dict(stages=(4,)), r'stages must be indices below 4, got \(4,\)'),
        (dict(counted='block'), r"counted must be 'backbone' or 'stage', got 'block'"),
        (dict(scope='all'), r"scope must be None or 'full', got 'all'"),
    ],
)
def test_bad_arguments_are_named(xbn, message):
    with pytest.raises(ValueError, match=message):
        build(XBN_R18, xbn=xbn)


def test_a_backbone_without_residual_blocks_is_refused():
    with pytest.raises(TypeError, match='SSDVGG has no residual blocks'):
        place_xbn(build(dict(type='SSDVGG', depth=16)))


def test_frozen_stages_stay_frozen_and_others_train():
    backbone = build(XBN_R18, frozen_stages=1, xbn=dict(stem=True))
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(('conv1', 'bn1', 'layer1')), name


def test_frozen_bn_does_not_move_while_gn_does():
    backbone = DET.build(dict(XBN_R18, norm_cfg=dict(type='FrozenBN')))
    backbone.train()
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD((p for p in backbone.parameters() if p.requires_grad), lr=0.1)
    sum(out.square().mean() for out in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    after = backbone.state_dict()
    moved = {key.rpartition('.')[0] for key in after if not torch.equal(after[key], before[key])}
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, (nn.GroupNorm, FrozenBN))}
    assert Counter(type(m) for m in norms.values()) == {nn.GroupNorm: 8, FrozenBN: 12}
    for name, m in norms.items():
        assert (name in moved) == isinstance(m, nn.GroupNorm), name


def load_bn_checkpoint(**kwargs):
    host = DET.build(dict(type='ResNet', depth=18, base_channels=8))
    backbone = DET.build(dict(XBN_R18, **kwargs))
    load_state_dict(backbone, host.state_dict(), strict=True)
    return host, backbone


def test_bn_checkpoint_loads_key_by_key_in_silence_where_bns_are_live():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        host, backbone = load_bn_checkpoint(norm_eval=False)
    theirs = host.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    'frozen',
    [
        dict(norm_eval=True),
        dict(norm_eval=False, frozen_stages=1),
        dict(norm_eval=False, norm_cfg=dict(type='FrozenBN')),
    ],
)
def test_bn_checkpoint_under_frozen_bns_is_warned_of(frozen):
    with pytest.warns(UserWarning, match='a BN checkpoint is loaded while BNs are frozen'):
        load_bn_checkpoint(**frozen)


@pytest.mark.parametrize('stem, places', [(True, None), (False, 'batch-free norms in 1 of the places .*bn1')])
def test_weights_of_another_placement_are_warned_of(stem, places):
    def build(stem):
        return DET.build(dict(XBN_R18, xbn=dict(stem=stem, norm_cfg=dict(type='GN', num_groups=1))))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        build(stem).load_state_dict(build(True).state_dict(), strict=False)
    assert [re.search(places, str(warning.message)) is not None for warning in said] == [True] * bool(places)


def test_dropped_affine_is_said():
    with pytest.warns(UserWarning, match='gamma and beta of 8 BNs were dropped'):
        load_bn_checkpoint(norm_eval=False, xbn=dict(norm_cfg=dict(type='IN')))


def test_own_checkpoint_loads_in_silence():
    backbone = DET.build(XBN_R18)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_state_dict(DET.build(XBN_R18), backbone.state_dict(), strict=True)


def test_forgotten_norm_eval_is_explained_once():
    backbone = DET.build(XBN_R18)
    with pytest.warns(UserWarning, match='XBNResNet has norm_eval=True: its BNs normalize by running') as caught:
        backbone.train()
        backbone.train()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        DET.build(dict(XBN_R18, norm_cfg=dict(type='FrozenBN'))).train()
        DET.build(dict(XBN_R18, norm_eval=False)).train()


def test_missing_weights_name_three_ways_on():
    backbone = build(XBN_R18, init_cfg=dict(type='Pretrained', checkpoint='nowhere/resnet50_xbn.pth'))
    with pytest.raises(FileNotFoundError) as error:
        backbone.init_weights()
    for way in (
        'nowhere/resnet50_xbn.pth',
        'github.com/huangleiBuaa/XBNBlock',
        'configs/mask_rcnn_xbn_r50_bn_init.py',
        'configs/mask_rcnn_xbn_r50_scratch.py',
    ):
        assert way in str(error.value)


def test_frozen_bn_of_mmdets_scope_is_ours_and_computes_the_same():
    from mmdet.models.layers.brick_wrappers import FrozenBatchNorm2d

    assert DET.get('FrozenBN') is SEG.get('FrozenBN') is ROOT.get('FrozenBN') is FrozenBN
    ours, theirs = FrozenBN(6), FrozenBatchNorm2d(6)
    ours.running_mean.normal_()
    ours.running_var.uniform_(0.5, 2)
    state = ours.state_dict()
    del state['num_batches_tracked']
    theirs.load_state_dict(state)
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(ours(x), theirs(x))
