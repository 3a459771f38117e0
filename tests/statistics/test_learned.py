"""Weights of SN, SW and RBN layers against brute force, and the hook that logs them."""

import copy
import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

import mmnorm
from mmnorm.norms import RBN, SN, SW, SyncSN, SyncSW, checks
from mmnorm.openmmlab.weights_hook import NormWeightsHook, scalars
from mmnorm.statistics.learned import (
    FIELD_BINS,
    average,
    field_bin,
    measure_spread,
    norm_weights,
    part_of,
    state_dict_ratios,
    symmetric_kl,
)

CONTROLS = ('mean_weight', 'var_weight', 'center_weight', 'scale_weight', 'scale_bias')


def randomized(model, seed=0, names=(*CONTROLS, 'weight', 'bias', 'running_mean', 'running_var')):
    """Set the parameters and buffers whose names end in one of these."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(names):
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values.square() + 0.5 if name.endswith('running_var') else values)
    return model


class Parts(nn.Module):
    """Layers where OpenMMLab has them."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bn1 = SN(6)
        self.backbone.layer1 = nn.Sequential(SN(6), SyncSN(6, groups=2))
        self.backbone.layer2 = nn.Sequential(SN(6, batch_stat=False), RBN(6), RBN(6, center=False))
        self.neck = nn.Sequential(RBN(6, scale=False), SN(6))
        self.bbox_head = nn.Sequential(SW(6), SyncSW(6, members=3), SW(6, members=5))


def softmax(values):
    values = np.exp(np.asarray(values, dtype=np.float64))
    return values / values.sum(-1, keepdims=True)


def test_every_sn_layer_against_brute_force():
    model = randomized(Parts())
    rows = norm_weights(model)['sn']
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SN)}
    assert [row['name'] for row in rows] == list(layers)
    assert [row['part'] for row in rows] == ['backbone.stem', *['backbone.stage1'] * 2, 'backbone.stage2', 'neck']
    for row, layer in zip(rows, layers.values()):
        p, q = (
            softmax(weight.detach().reshape(-1, weight.shape[-1])) for weight in (layer.mean_weight, layer.var_weight)
        )
        for key, ratios in (('mean', p), ('var', q)):
            expected = [*ratios.mean(0), *[0] * (3 - ratios.shape[1])]  # without batch_stat there is no BN
            assert row[key] == pytest.approx(expected, abs=1e-6)
            assert row[f'{key}_pick'] == [('IN', 'LN', 'BN')[group.argmax()] for group in ratios]
        assert row['kl'] == pytest.approx(divergence(p, q).mean(), rel=1e-5)


def divergence(p, q):
    return (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)


def test_every_sw_layer_against_brute_force():
    """Ratios of what a layer does not mix are 0; its own are in the order of the network's members, not in its own."""
    model = randomized(Parts())
    found = norm_weights(model)
    orders = [('BW', 'IW'), ('BW', 'IW', 'LN'), ('BW', 'IW', 'BN', 'IN', 'LN')]
    assert found['members'] == dict(sn=['IN', 'LN', 'BN'], sw=list(orders[-1]))
    for row, layer, order in zip(found['sw'], model.bbox_head, orders, strict=True):
        p, q = (softmax(weight.detach()) for weight in (layer.sw_mean_weight, layer.sw_var_weight))
        for key, ratios in (('mean', p), ('var', q)):
            shares = dict(zip(order, ratios))
            assert row[key] == pytest.approx([shares.get(name, 0) for name in orders[-1]], abs=1e-6)
            assert row[f'{key}_pick'] == [order[ratios.argmax()]]
        assert row['part'] == 'bbox_head' and row['members'] == list(order)
        assert row['kl'] == pytest.approx(divergence(p, q), rel=1e-5)
    assert found['sw_differing'] == np.mean([row['mean_pick'] != row['var_pick'] for row in found['sw']])
    assert norm_weights(model.bbox_head[:2])['members'] == dict(sn=[], sw=['BW', 'IW', 'LN'])


def test_every_rbn_layer_against_brute_force():
    model = randomized(Parts())
    rows = {row['name']: row for row in norm_weights(model)['rbn']}
    assert list(rows) == [name for name, m in model.named_modules() if isinstance(m, RBN)]
    for name, row in rows.items():
        layer = model.get_submodule(name)
        for column in ('center_weight', 'abs_center_weight', 'scale_weight', 'abs_scale_weight', 'scale_bias'):
            weight = getattr(layer, column.removeprefix('abs_'), None)
            if weight is None:
                assert row[column] is None
            else:
                weight = weight.detach().numpy()
                assert row[column] == pytest.approx(np.mean(np.abs(weight) if 'abs' in column else weight), rel=1e-5)


def test_averages_against_pandas():
    fields = dict(zip(['backbone.bn1', 'backbone.layer1.0', 'backbone.layer1.1', 'neck.1'], [7, 49, 50, math.inf]))
    found = norm_weights(randomized(Parts()), fields)
    for table, rows, group, columns in (
        ('sn_by_part', 'sn', 'part', ['kl']),
        ('sn_by_field', 'sn', 'field_bin', ['kl']),
        ('sw_by_part', 'sw', 'part', ['kl']),
        ('rbn_by_part', 'rbn', 'part', ['center_weight', 'abs_scale_weight', 'scale_bias']),
    ):
        frame = pd.DataFrame(found[rows])
        for names, of_rows in ((found[table], frame), ({'all': found[table]['all']}, frame.assign(**{group: 'all'}))):
            means = of_rows.groupby(group)[columns].mean()
            for name in means.index:
                for column in columns:
                    expected = means.at[name, column]
                    assert names[name][column] == (None if pd.isna(expected) else pytest.approx(expected))
                assert names[name]['layers'] == (of_rows[group] == name).sum()
    stage = [row['mean'] for row in found['sn'] if row['part'] == 'backbone.stage1']
    assert found['sn_by_part']['backbone.stage1']['mean'] == pytest.approx(np.mean(stage, axis=0))
    assert list(found['sn_by_field']) == ['up to 49', '50 to 199', 'whole image', 'not defined', 'all']
    assert list(found['sn_by_part'])[-1] == 'all'
    differing = [row['mean_pick'] != row['var_pick'] for row in found['sn']]
    assert found['sn_differing'] == np.mean(differing)


def test_state_dict_alone_gives_the_same():
    model = randomized(Parts())
    assert norm_weights(model.state_dict()) == norm_weights(model)
    frozen = nn.Sequential(SN(4, frozen=True), RBN(4, frozen=True), SW(4, frozen=True, tie_weight=True))
    assert norm_weights(frozen.state_dict()) == norm_weights(frozen)
    assert [len(norm_weights(frozen)[kind]) for kind in ('sn', 'sw', 'rbn')] == [1, 1, 1]
    hardened = copy.deepcopy(model)
    mmnorm.harden(hardened)
    soft, hard = norm_weights(model), norm_weights(hardened)
    # a state dict does not say that it was hardened, but what it would pick
    assert norm_weights(hardened.state_dict()) == soft
    for before, after in zip(soft['sn'], hard['sn']):
        assert after['mean_pick'] == before['mean_pick'] and after['var_pick'] == before['var_pick']
        assert after['kl'] == (0 if after['mean_pick'] == after['var_pick'] else math.inf)
        assert sorted(set(after['mean'])) in ([0.0, 1.0], [0.0, 0.5])  # two groups may pick two
    assert hard['sn_differing'] == soft['sn_differing']


def test_a_bare_layer_and_a_network_without():
    assert norm_weights(SN(4))['sn'][0]['name'] == '' and norm_weights(SN(4))['sn'][0]['part'] == 'network'
    empty = norm_weights(nn.BatchNorm2d(4))
    assert empty == dict(
        members=dict(sn=[], sw=[]),
        **dict(sn=[], sn_by_part={}, sn_by_field={}, sn_differing=None),
        **dict(sw=[], sw_by_part={}, sw_by_field={}, sw_differing=None),
        **dict(rbn=[], rbn_by_part={}),
    )
    assert state_dict_ratios({'other.mean_weight': torch.ones(3)}) == {}
    assert average([], 'part', ('kl',)) == {}


def test_symmetric_kl():
    p, q = (torch.rand(5, 3, generator=torch.Generator().manual_seed(seed)).softmax(-1) for seed in (0, 1))
    expected = [
        sum(a * math.log(a / b) + b * math.log(b / a) for a, b in zip(x, y)) for x, y in zip(p.tolist(), q.tolist())
    ]
    assert symmetric_kl(p, q).tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(symmetric_kl(p, q), symmetric_kl(q, p))
    assert symmetric_kl(p, p).abs().max() == 0
    one_hot = torch.eye(3)
    assert symmetric_kl(one_hot, one_hot).tolist() == [0, 0, 0]
    assert symmetric_kl(one_hot[0], one_hot[1]).isinf() and symmetric_kl(one_hot[0], p[0]).isinf()


@pytest.mark.parametrize(
    'name, part',
    [
        ('backbone.bn1', 'backbone.stem'),
        ('backbone.stem.4', 'backbone.stem'),
        ('backbone.conv1.bn', 'backbone.stem'),
        ('backbone.layer1.0.bn2', 'backbone.stage1'),
        ('backbone.layer4.2.downsample.1', 'backbone.stage4'),
        ('backbone.layers.0.1.bn', 'backbone.stage1'),
        ('backbone.stages.3.bn', 'backbone.stage4'),
        ('backbone.stage2.0.bn', 'backbone.stage2'),
        ('backbone.conv2.bn', 'backbone.conv2'),
        ('neck.fpn_convs.0.bn', 'neck'),
        ('rpn_head.rpn_conv.bn', 'rpn_head'),
        ('bbox_head.cls_convs.0.bn', 'bbox_head'),
        ('roi_head.bbox_head.shared_convs.0.bn', 'roi_head.bbox_head'),
        ('roi_head.mask_head.convs.0.bn', 'roi_head.mask_head'),
        ('roi_head.bbox_head.1.shared_convs.0.bn', 'roi_head.bbox_head'),
        ('roi_head.shared_head.layer4.0.bn1', 'roi_head.shared_head'),
        ('decode_head.bottleneck.bn', 'decode_head'),
        ('auxiliary_head.0.convs.0.bn', 'auxiliary_head'),
        ('layer3.0.bn1', 'stage3'),
        ('bn1', 'stem'),
        ('0', 'network'),
        ('', 'network'),
        ('features.1', 'features'),
        ('header.bn', 'header'),
    ],
)
def test_part_of_the_network(name, part):
    assert part_of(name) == part


def test_bins_of_receptive_fields():
    fields = [1, 49, 50, 199, 200, 299, 300, 427, 428, math.inf, None]
    assert [FIELD_BINS.index(field_bin(field)) for field in fields] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6]


def statistic(kind, x, eps):
    dims = (2, 3) if kind.startswith('channel') else (1,)
    if kind.endswith('mean'):
        return x.mean(dims, keepdim=True)
    return torch.sqrt(x.var(dims, correction=0, keepdim=True) + eps)


def brute_spread(layer, x):
    """rbn, Eq. 5 and 9, spelled out on all samples at once."""

    def per_channel(value):
        return value.detach().double().view(-1, 1, 1)

    x = x.double()
    if layer.center:
        x = x + per_channel(layer.center_weight) * statistic(layer.center_stat, x, layer.eps)
    x_s = (x - per_channel(layer.running_mean)) / torch.sqrt(per_channel(layer.running_var) + layer.eps)
    gate = torch.sigmoid(
        per_channel(layer.scale_weight) * statistic(layer.scale_stat, x_s, layer.eps) + per_channel(layer.scale_bias)
    )
    return [values.mean((2, 3)).std(0, correction=0) for values in (x_s, x_s * gate)]


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(scale_stat='channel_std'),
        dict(center_stat='spatial_mean', scale_stat='spatial_std'),
        dict(scale_stat='spatial_mean', center=False),
        dict(frozen=True),
    ],
)
def test_spread_against_brute_force(options):
    model = randomized(nn.Sequential(nn.Conv2d(3, 5, 1), RBN(5, **options)))
    batches = [torch.randn(n, 3, size, size) + 2 for n, size in ((2, 6), (0, 6), (5, 6), (1, 6))]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measure_spread(model, iter(batches))
    expected = brute_spread(model[1], model[0](torch.cat(batches)).detach())
    assert list(found) == ['1']
    for stage, values in zip(('before', 'after'), expected):
        assert found['1'][stage].dtype == torch.float64
        torch.testing.assert_close(found['1'][stage], values, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_spread_leaves_the_network_as_it_was():
    model = nn.Sequential(RBN(3), nn.Sequential(nn.BatchNorm2d(3), RBN(3)))
    model[1].eval()
    modes = [m.training for m in model.modules()]
    grads = []

    def forward(network, batch):
        grads.append(torch.is_grad_enabled() or network.training)
        network(batch)
        if len(grads) == 3:
            raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        measure_spread(model, [torch.randn(2, 3, 4, 4)] * 4, forward)
    assert grads == [False] * 3
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_spread_of_chosen_layers_and_mistakes():
    model = nn.Sequential(RBN(3), RBN(3, scale=False), RBN(3))
    batches = [torch.randn(4, 3, 2, 2)]
    assert list(measure_spread(model, batches)) == ['0', '2']
    assert list(measure_spread(model, batches, names=['2'])) == ['2']
    assert measure_spread(model, [batches[0][:1]]) == {}  # one sample has no spread
    for wrong, message in (
        (lambda: measure_spread(model, batches, names=['1']), 'no RBN layer with .* called 1; choose one of 0, 2'),
        (lambda: measure_spread(nn.Sequential(SN(3)), batches), 'Sequential has no RBN layer'),
        (lambda: measure_spread(model, []), 'no batches'),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


class Trained(BaseModel):
    def __init__(self, *layers):
        super().__init__()
        self.backbone, self.neck = nn.Conv2d(2, 4, 1), nn.Sequential(*layers)

    def forward(self, inputs, mode='loss'):
        inputs = torch.stack(inputs)
        return dict(loss=(self.neck(self.backbone(inputs)) * torch.arange(4.0).view(4, 1, 1)).sigmoid().mean())


def run_training(tmp_path, layers, backends=('LocalVisBackend',), **options):
    data = [dict(inputs=torch.randn(2, 5, 5)) for _ in range(10)]
    runner = Runner(
        Trained(*layers),
        str(tmp_path),
        train_dataloader=dict(dataset=data, batch_size=2, sampler=dict(type='DefaultSampler')),
        train_cfg=dict(by_epoch=False, max_iters=5),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
        custom_hooks=[dict(type='NormWeightsHook', **options)],
        log_level='ERROR',
        experiment_name=tmp_path.name,
        visualizer=dict(
            type='Visualizer', name=tmp_path.name, vis_backends=[dict(type=backend) for backend in backends]
        ),
    )
    runner.train()
    records = [json.loads(line) for line in next(tmp_path.rglob('scalars.json')).read_text().splitlines()]
    return runner, [record for record in records if any(key.startswith('norm_weights') for key in record)]


@pytest.mark.filterwarnings('ignore')
def test_hook_logs_to_every_backend(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    backends = 'LocalVisBackend', 'TensorboardVisBackend'
    runner, records = run_training(tmp_path, [SN(4), RBN(4), SW(4, members=5)], backends, interval=2, per_layer=True)
    assert [record.pop('step') for record in records] == [2, 4, 5]  # each second, and the last
    expected = scalars(runner.model, per_layer=True)
    assert records[-1] == expected
    row = norm_weights(runner.model)['sn'][0]
    assert expected['norm_weights/neck/mean_LN'] == expected['norm_weights_of_layers/neck.0/mean_LN'] == row['mean'][1]
    assert expected['norm_weights/neck/kl'] == expected['norm_weights/all/kl'] == row['kl'] > 0
    assert expected['norm_weights/neck/scale_bias'] == pytest.approx(runner.model.neck[1].scale_bias.mean().item())
    row = norm_weights(runner.model)['sw'][0]
    assert (
        expected['norm_weights/neck/sw_var_LN'] == expected['norm_weights_of_layers/neck.2/sw_var_LN'] == row['var'][4]
    )
    assert expected['norm_weights/all/sw_kl'] == row['kl'] > 0
    assert records[0]['norm_weights/neck/mean_LN'] != records[-1]['norm_weights/neck/mean_LN']
    events = accumulator.EventAccumulator(str(next(tmp_path.rglob('events.out.tfevents.*')).parent))
    events.Reload()
    assert {tag for tag in events.Tags()['scalars'] if tag.startswith('norm_weights')} == set(expected)
    for tag in expected:
        assert [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)] == [
            (step, record[tag]) for step, record in zip((2, 4, 5), records)
        ]


@pytest.mark.filterwarnings('ignore')
def test_hook_without_layers_warns_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, '_warned', set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        _, records = run_training(tmp_path, [nn.BatchNorm2d(4)], interval=1)
    said = [str(w.message) for w in caught if 'NormWeightsHook' in str(w.message)]
    assert records == [] and said == ['NormWeightsHook: the model has no SN, SW or RBN layers, nothing is logged']


@pytest.mark.parametrize('rank', [0, 1])
def test_hook_under_a_wrapper_logs_on_the_first_rank_alone(rank):
    logged = []
    runner = SimpleNamespace(
        model=nn.DataParallel(nn.Sequential(SN(4))),
        rank=rank,
        iter=9,
        max_iters=100,
        visualizer=SimpleNamespace(add_scalars=lambda values, step: logged.append((values, step))),
    )
    hook = HOOKS.build(dict(type='NormWeightsHook', interval=10))
    assert isinstance(hook, NormWeightsHook)
    hook.after_train_iter(runner, 0)
    if rank:
        assert logged == []
    else:
        assert logged == [(scalars(SN(4)), 10)]  # without the wrapper's prefix


def test_hardened_ratios_have_no_divergence_to_log():
    model = randomized(SN(4, hard=True), seed=3)
    picks = [weight.argmax() for weight in (model.mean_weight, model.var_weight)]
    assert ('norm_weights/network/kl' in scalars(model)) == (picks[0] == picks[1])
    assert all(math.isfinite(value) for value in scalars(model).values())
