"""What norms a network has, and putting others in their place."""

import warnings
from functools import partial

import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from torch import nn
from torch.distributed import ProcessGroup

from mmnorm.blocks import build_norm, freeze_norms, is_norm, list_norms, norm_layers, replace_norms, summarize_norms
from mmnorm.norms import NORMS, SYNC_TWINS, FrozenBN, checks

from ..norms.cases import CHANNELS, EVERY, build, described, randomized

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), randomized(norm(8)), nn.ReLU(), nn.Conv2d(8, 8, 3), randomized(norm(8)))


class FrozenBatchNorm2d(nn.Module):
    """As torchvision and mmdet have one: no subclass of torch's norms."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for name, value in (('weight', 1.0), ('bias', 0.0), ('running_mean', 0.0), ('running_var', 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))


@pytest.mark.parametrize(
    'module, expected',
    [
        (nn.BatchNorm1d(4), True),
        (nn.SyncBatchNorm(4), True),
        (nn.InstanceNorm2d(4), True),
        (nn.GroupNorm(2, 4), True),
        (nn.LayerNorm(4), True),
        (FrozenBatchNorm2d(4), True),
        (nn.Conv2d(4, 4, 1), False),
        (nn.Dropout(), False),
        (nn.Sequential(nn.BatchNorm2d(4)), False),
    ],
)
def test_what_is_a_norm(module, expected):
    assert is_norm(module) is expected


@pytest.mark.parametrize('name', NORMS)
def test_every_norm_of_ours_is_listed_by_its_name(name):
    (found,) = list_norms(nn.Sequential(NORMS[name](8)))
    assert (found.name, found.type, found.channels) == ('0', name, 8)
    assert found.state == ('fixed' if name == 'FrozenBN' else 'trains')


def test_states_are_those_of_the_mode_that_the_network_is_in():
    model = nn.ModuleDict(
        dict(
            live=nn.BatchNorm2d(4),
            held=nn.BatchNorm2d(4).eval(),
            fixed=FrozenBN(4),
            by_batch=nn.BatchNorm2d(4).requires_grad_(False),
            free=nn.GroupNorm(2, 4),
            stopped=nn.GroupNorm(2, 4).requires_grad_(False),
            theirs=FrozenBatchNorm2d(4),
        )
    )
    assert {layer.name: layer.state for layer in list_norms(model)} == dict(
        live='trains', held='held', fixed='fixed', by_batch='by batch', free='trains', stopped='fixed', theirs='fixed'
    )
    assert summarize_norms(model) == (
        '1 BN, 1 BN (held), 1 FrozenBN (fixed), 1 BN (by batch), 1 GN, 1 GN (fixed), 1 FrozenBatchNorm2d (fixed)'
    )
    assert summarize_norms(nn.ReLU()) == 'no norm layers'


@torch.no_grad()
@pytest.mark.parametrize('name', [name for name in NORMS if name not in SYNC_TWINS.values()] + ['GN', 'IN'])
def test_replaced_by_every_norm_with_parameters_modes_and_types(name):
    model, arguments = network().double(), dict(num_groups=4) if name in ('GN', 'GW') else {}
    model[1].eps, model[1].momentum = 1e-3, 0.05
    model[1].eval()
    model[4].weight.requires_grad_(False)
    weights = model[4].bias
    assert replace_norms(model, name, **arguments) == ['1', '4']
    assert all(layer.type == name for layer in list_norms(model))
    new, last = model[1], model[4]
    assert new.eps == 1e-3 and new.training == (False if name != 'FrozenBN' else new.training)
    assert getattr(new, 'momentum', None) in (0.05, None) or name in ('PN', 'GW')
    for value in new.state_dict().values():
        assert value.dtype in (torch.float64, torch.int64)
    if name not in ('IN', 'FrozenBN'):
        of_bn = getattr(last, 'bn_parameters', {})
        weight, bias = (getattr(last, of_bn.get(leaf, leaf)) for leaf in ('weight', 'bias'))
        assert bias is weights and not weight.requires_grad and bias.requires_grad
    assert model(torch.randn(2, 3, 12, 12, dtype=torch.float64)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize('name', ['RBN', 'EN', 'BRN', 'FrozenBN', 'BN'])
def test_evaluates_as_the_bn_that_it_replaces(name):
    model, x = network().eval(), torch.randn(2, 3, 12, 12)
    expected = model(x)
    replace_norms(model, name)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def learned(name, **arguments):
    """A network whose norms have learned something."""
    model = network().eval()
    replace_norms(model, name, **arguments)
    for parameter in model.parameters():
        parameter.normal_()
    return model


@torch.no_grad()
@pytest.mark.parametrize('name', NORMS)
def test_what_a_norm_learned_is_kept_in_one_of_its_kind(name):
    model, x = learned(name), torch.randn(2, 3, 12, 12)
    expected = model(x)
    plain = name.removeprefix('Sync')
    for other in (name, *(twin for twin in (f'Sync{plain}', plain) if twin in NORMS)):
        replace_norms(model, other, '*')
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize('name', ['SN', 'RBN', 'EN', 'BGN'])
def test_what_has_no_place_in_the_new_norm_is_said(name, monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())
    model = learned(name, **dict(num_groups=2) if name == 'BGN' else {})
    layer = model[1]
    lost = list(layer.added_to_bn())
    running = [value.repeat_interleave(8 // len(value)) for value in (layer.running_mean, layer.running_var)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        replace_norms(model, 'BN', '*')
    said = [str(warning.message) for warning in told if 'has no place in BN, in 1' in str(warning.message)]
    assert len(said) == bool(lost) and all(key in said[0] for key in lost)
    assert torch.equal(model[1].running_mean, running[0]) and torch.equal(model[1].running_var, running[1])


def test_statistics_of_groups_of_elements_fit_no_other_norm():
    model = learned('BGN', num_groups=3)
    with pytest.raises(ValueError, match='replace_norms: 1 has statistics of 3 groups, which are not of whole'):
        replace_norms(model, 'BN', '*')
    assert all(layer.type == 'BGN' for layer in list_norms(model))


def test_where_chooses_by_pattern_names_or_function():
    assert replace_norms(network(), 'SN', '4') == ['4']
    assert replace_norms(network(), 'SN', ['1']) == ['1']
    assert replace_norms(network(), 'SN', (name for name in ['1', '4'])) == ['1', '4']
    assert replace_norms(network(), 'SN', lambda name, layer: layer.num_features == 8 and name != '1') == ['4']
    model = nn.Sequential(network(), network(FrozenBN))
    assert replace_norms(model, 'SN') == ['0.1', '0.4']  # plain BN only
    assert replace_norms(model, 'RBN', '*', center=False) == ['0.1', '0.4', '1.1', '1.4']
    assert model[1][1].center is False


def test_a_shared_layer_stays_shared_and_conv_modules_fold_no_more():
    norm = nn.BatchNorm2d(8)
    model = nn.ModuleList([nn.Sequential(norm), nn.Sequential(norm)])
    assert replace_norms(model, 'SN') == ['0.0'] and model[0][0] is model[1][0]
    module = ConvModule(3, 8, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True).eval()
    replace_norms(module, 'EN', batch_size=2)
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(module(x), torch.relu(module.norm(module.conv(x))))


def test_a_whole_backbone():
    backbone = ResNet(18, base_channels=8)
    names = list(norm_layers(backbone))
    assert replace_norms(backbone, 'GN', num_groups=4) == names and len(names) == 20


@pytest.mark.parametrize(
    'model, arguments, message',
    [
        (nn.Conv2d(3, 8, 1), dict(norm='SN'), 'Conv2d has no plain BN; its norms are: none'),
        (nn.Sequential(nn.GroupNorm(2, 8)), dict(norm='SN'), 'Sequential has no plain BN; its norms are: GN'),
        (network(), dict(norm='SN', where='backbone.*'), 'has no norm layer that matches where; its norms are: BN'),
        (network(), dict(norm='Switchable'), "1: no norm is called 'Switchable'; choose one of FrozenBN, SN, "),
        (
            network(),
            dict(norm='GN', num_groups=3),
            '1: GN: num_groups=3 does not divide 8 channels; choose one of 1, 2, 4, 8',
        ),
        (nn.BatchNorm2d(8), dict(norm='SN'), 'the model is itself a BN layer'),
    ],
)
def test_mistakes_are_named_and_change_nothing(model, arguments, message):
    before = list(map(type, model.modules()))
    with pytest.raises(ValueError, match=message.replace('(', r'\(')):
        replace_norms(model, **arguments)
    assert list(map(type, model.modules())) == before


def test_build_norm_takes_what_a_norm_cfg_has():
    layer = build_norm(dict(type='GN', requires_grad=False), 8)
    assert layer.num_groups == 8 and not layer.weight.requires_grad


@pytest.mark.parametrize('norm', ['GW', 'PN', 'GN', 'IN'])
def test_what_keeps_no_running_statistics_is_not_given_a_momentum(norm, recwarn):
    replace_norms(network(), norm)
    assert not [w for w in recwarn if 'momentum' in str(w.message)]


@pytest.mark.parametrize('name', SYNC_TWINS.values())
def test_what_replaces_a_synchronized_norm_is_over_the_same_ranks(name):
    group = ProcessGroup(0, 1)
    model = nn.Sequential(nn.SyncBatchNorm(8, process_group=group), name(8, group_size=2))
    replace_norms(model, name.__name__, lambda *_: True)
    assert model[0].process_group is group and model[0].group_size is None
    assert model[1].process_group is None and model[1].group_size == 2
    replace_norms(model, name.__name__, '0', group_size=4)
    assert model[0].process_group is None and model[0].group_size == 4


@pytest.mark.parametrize('cfg', [cfg for cfg in EVERY if not cfg.get('per_level')], ids=described)
def test_freeze_norms_fixes_every_kind(cfg):
    """Nothing changes in training, and the layer computes what one that is frozen from the start does."""
    torch.manual_seed(0)
    layer = randomized(build(cfg))
    frozen = build(dict(cfg, frozen=True))
    frozen.load_state_dict(layer.state_dict())
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), layer)
    assert freeze_norms(model) == freeze_norms(model) == ['1']
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 3, 6, 6)
    for module in (model, frozen):
        module.train().requires_grad_()
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(x), frozen.train(mode)(model[0](x)))
    model(x).sum().backward()
    assert not list(model[1].parameters()) and model[0].weight.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('kind', [nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, partial(nn.GroupNorm, 2)])
def test_freeze_norms_of_torch(kind):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), kind(8))
    state, x = {name: value.clone() for name, value in model.state_dict().items()}, torch.randn(4, 3, 6, 6)
    expected = model.eval()(x)
    assert freeze_norms(model) == ['1'] and summarize_norms(model).endswith(('(fixed)', 'IN', 'GN'))
    torch.testing.assert_close(model.train()(x), expected)
    assert not list(model[1].parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_freeze_norms_of_some_or_none():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3, track_running_stats=True))
    with pytest.raises(ValueError, match='freeze_norms: IN 2 keeps running statistics and has no frozen form'):
        freeze_norms(model)
    assert type(model[0]) is nn.BatchNorm2d and len(list(model[1].parameters())) == 2
    assert freeze_norms(model, ['0']) == ['0'] and type(model[0]) is FrozenBN and len(list(model[1].parameters())) == 2
