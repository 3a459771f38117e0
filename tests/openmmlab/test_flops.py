import pytest
import torch
from mmcv.cnn.utils.flops_counter import get_model_complexity_info as count_of_mmcv
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from torch import nn

from mmnorm.norms import PlaneNorm

from ..norms.cases import EVERY, build, described

WHITEN = 'GW', 'BW', 'SyncBW', 'SW', 'SyncSW'
over_all = pytest.mark.parametrize('cfg', EVERY, ids=described)


def network(norm):
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 1))


def stands_for(norm):
    if isinstance(norm, PlaneNorm):
        return nn.BatchNorm2d(8, track_running_stats=norm.running_mean is not None)
    return nn.GroupNorm(1, 8)


@over_all
@pytest.mark.parametrize('train', [False, True])
def test_mmengines_counter_counts_ours_as_torchs_without_a_word(cfg, train, caplog):
    norm, x = build(cfg), torch.randn(2, 3, 9, 9)
    ours = network(norm).train(train)
    theirs = network(stands_for(norm)).train(norm.training)
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    counted, expected = FlopAnalyzer(ours, x), FlopAnalyzer(theirs, x)
    assert counted.by_module()['1'] > 0 and not counted.unsupported_ops()
    products = counted.by_operator('1').pop('matmul', 0)
    assert (products > 0) == (cfg['type'] in WHITEN)
    assert counted.total() - products == expected.total()
    assert not any('Unsupported' in record.getMessage() and 'norm' in record.getMessage() for record in caplog.records)
    assert 'forward' not in vars(norm)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key])


@over_all
def test_mmengines_summary(cfg):
    norm = build(cfg)
    info, expected = (
        get_model_complexity_info(network(layer).eval(), (3, 9, 9), show_table=False, show_arch=False)
        for layer in (norm, stands_for(norm))
    )
    assert info['flops'] >= expected['flops'] and (cfg['type'] in WHITEN or info['flops'] == expected['flops'])


@over_all
def test_mmcvs_counter_counts_ours_as_torchs(cfg):
    norm = build(cfg)
    ours, theirs = (
        count_of_mmcv(
            network(layer), (3, 9, 9), False, False, input_constructor=lambda shape: dict(input=torch.rand(1, *shape))
        )[0]
        for layer in (norm, stands_for(norm))
    )
    assert ours == theirs


def test_fvcores_counter():
    fvcore = pytest.importorskip('fvcore.nn')
    x = torch.randn(2, 3, 9, 9)
    counts = {
        fvcore.FlopCountAnalysis(network(layer).eval(), x).total()
        for layer in (build(dict(type='SN')), nn.BatchNorm2d(8))
    }
    assert len(counts) == 1
