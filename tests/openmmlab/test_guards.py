import functools

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmdet.models.layers import FrozenBatchNorm2d
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.registry import MODELS
from mmengine.runner import runner
from torch import nn
from torch.distributed import ProcessGroup

from mmnorm import norms
from mmnorm.norms import BGN, BRN, EN, GBGN, IBN, RBN, SN, FrozenBN, PlaneNorm, checks

from ..norms.cases import EVERY, build, described, randomized

X = torch.randn(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())


def network(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)).eval()
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.weight.copy_(torch.randn(6))
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model


CONVERTERS = [convert_sync_batchnorm, runner.convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm]


@torch.no_grad()
@pytest.mark.parametrize('convert', CONVERTERS)
@pytest.mark.parametrize('norm', [SN, RBN, EN, BGN])
def test_sync_conversion_makes_the_twin_and_back(norm, convert):
    model = network(norm)
    parameters, expected = [id(p) for p in model.parameters()], model[:2](X)
    with pytest.warns(UserWarning, match=f'convert_sync_batchnorm turns {norm.__name__} to Sync{norm.__name__}'):
        model = convert(model)
    assert type(model[1]) is getattr(norms, f'Sync{norm.__name__}') and isinstance(model[4], nn.SyncBatchNorm)
    assert [id(p) for p in model[:2].parameters()] == parameters[: len(list(model[:2].parameters()))]
    assert torch.equal(model[:2](X), expected)
    model = revert_sync_batchnorm(model)
    assert type(model[1]) is norm and not isinstance(model[4], nn.SyncBatchNorm)
    assert torch.equal(model[:2](X), expected)


@pytest.mark.parametrize('convert', CONVERTERS)
@pytest.mark.parametrize('norm', [FrozenBN, GBGN, BRN, IBN, functools.partial(EN, virtual_batch_size=1)])
def test_sync_conversion_leaves_alone_what_has_no_twin_and_says_so(norm, convert):
    model = network(norm)
    layer = model[1]
    with pytest.warns(UserWarning, match=f'convert_sync_batchnorm skips {type(layer).__name__}: not a plain BatchNorm'):
        model = convert(model)
    assert model[1] is layer and isinstance(model[4], nn.SyncBatchNorm)
    assert convert(layer) is layer
    assert revert_sync_batchnorm(model)[1] is layer


@pytest.mark.parametrize('norm', [SN, RBN, EN, BGN])
def test_conversion_for_a_group_of_ranks_makes_twins_over_it(norm):
    group = ProcessGroup(0, 1)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network(norm), group)
    assert type(model[1]) is getattr(norms, f'Sync{norm.__name__}')
    assert model[1].process_group is model[4].process_group is group
    # as torch's: what synchronizes already takes another group, and keeps its own if there is none
    other = ProcessGroup(0, 1)
    nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group=other)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert model[1].process_group is other
    revert_sync_batchnorm(model)
    assert type(model[1]) is norm and model[1].process_group is None


@torch.no_grad()
@pytest.mark.parametrize('norm', [SN, RBN])
def test_fusing_leaves_ours_alone_and_folds_bn(norm):
    model = network(norm)
    expected, layer = model(X), model[1]
    with pytest.warns(UserWarning, match=f'fuse_conv_bn: folded 1 norms .* left 1: {norm.__name__} is'):
        fused = fuse_conv_bn(model)
    assert fused[1] is layer and isinstance(fused[4], nn.Identity)
    torch.testing.assert_close(fused(X), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fusing_takes_no_norm_for_one_behind_it_or_for_its_twin():
    shared = network(SN)[1]
    for model in (
        nn.Sequential(nn.Conv2d(3, 6, 3), shared, nn.Conv2d(6, 6, 3), shared),
        nn.Sequential(nn.Conv2d(3, 6, 3), shared, nn.ReLU(), network(SN)[4]),
    ):
        model.eval()
        expected = model(X)
        torch.testing.assert_close(fuse_conv_bn(model)(X), expected, rtol=1e-4, atol=1e-4)
        assert not model.training


@torch.no_grad()
def test_mmengines_efficient_conv_bn_eval_leaves_models_with_ours_alone():
    model = network(SN)
    expected = model(X)
    with pytest.warns(UserWarning, match='efficient_conv_bn_eval stays off for a model with norms of mmnorm'):
        turn_on_efficient_conv_bn_eval(nn.ModuleDict(dict(head=model)), 'head')
    assert torch.equal(model(X), expected)


@torch.no_grad()
def test_fusing_folds_frozen_bn():
    model = network(FrozenBN)
    expected = model(X)
    fused = fuse_conv_bn(model)
    assert isinstance(fused[1], nn.Identity) and isinstance(fused[4], nn.Identity)
    torch.testing.assert_close(fused(X), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['SN', 'RBN', 'FrozenBN'])
def test_efficient_conv_bn_eval_changes_no_result(kind):
    module = ConvModule(3, 6, 3, norm_cfg=dict(type=kind)).eval()
    module.norm.running_mean.normal_()
    expected = module(X)
    module.turn_on_efficient_conv_bn_eval()
    assert (module.efficient_conv_bn_eval_forward is None) == (kind != 'FrozenBN')
    torch.testing.assert_close(module(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('cfg', EVERY, ids=described)
def test_convert_frozen_batchnorm_freezes_ours_as_they_are(cfg):
    torch.manual_seed(0)
    layer = randomized(build(cfg)).eval()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.BatchNorm2d(8)).eval()
    with torch.no_grad():
        expected = model(X)
    batch_free = not isinstance(layer, PlaneNorm)
    known = set(layer.state_dict())
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(model) is model
    assert model[1] is layer and isinstance(model[2], FrozenBatchNorm2d) and set(layer.state_dict()) == known
    assert layer.training is False and (batch_free or layer.frozen and not list(layer.parameters()))
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-5)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    model.train()(X.requires_grad_()).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(layer) is layer


def test_convert_frozen_batchnorm_says_so_once():
    model = nn.Sequential(SN(8), nn.Sequential(FrozenBN(8), RBN(8), nn.BatchNorm2d(8)))
    with pytest.warns(UserWarning, match='convert_frozen_batchnorm makes RBN, SN frozen, not Froz') as warned:
        FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert len(warned) == 1 and isinstance(model[1][2], FrozenBatchNorm2d)
    plain = FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(8))
    assert isinstance(plain, FrozenBatchNorm2d)


@pytest.mark.parametrize('host', ['mmdet', 'mmpretrain'])  # by an init_cfg; by a call of mmengine's function
@pytest.mark.parametrize('norm, said', [('BCN', 0), ('ILM', 1)])
def test_zero_init_residual_is_said_where_blocks_do_not_start_as_the_identity(host, norm, said, recwarn):
    cfg = dict(type=f'{host}.ResNet', depth=18, base_channels=8, norm_eval=False, zero_init_residual=True)
    backbone = MODELS.build(dict(cfg, norm_cfg=dict(type=norm)))
    backbone.init_weights()
    block = backbone.layer1[0]
    assert not block.norm2.weight.any() and block.norm1.weight.all()
    told = [str(warning.message) for warning in recwarn if 'set zero_init_residual=False' in str(warning.message)]
    assert len(told) == said and all(text.startswith(f'{norm}: its weight is set to 0') for text in told)


def test_hosts_leave_a_norm_the_eps_of_its_paper():
    from mmpretrain.models import utils
    from mmpretrain.registry import MODELS

    assert MODELS.get('XBNResNet')  # its first use is what guards
    builders = build, lambda cfg: utils.build_norm_layer(cfg, 8), lambda cfg: MODELS.build(dict(cfg, num_features=8))
    for build_norm in builders:
        assert build_norm(dict(type='FRN')).eps == norms.FRN(8).eps != build_norm(dict(type='SN')).eps
        assert build_norm(dict(type='FRN', eps=1e-5)).eps == 1e-5
