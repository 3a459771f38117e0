"""What is computed as a blend, with its gradient written out, is what the layer's own ``statistics`` defines."""

import pytest
import torch

from mmnorm.norms import NORMS, PlaneNorm

from .cases import CHANNELS, EVERY, build, described, randomized

# of a layer in training; in evaluation those whose statistics then are the running ones are computed as BN
BLENDED = {
    *('SN', 'SyncSN', 'SN,groups=2', 'SN,batch_stat=False', 'SN,hard=True', 'SN,unbiased=True', 'SSN,hard=True'),
    *('RBN', 'SyncRBN', 'RBN,center=False', 'GBGN', 'BRN', 'BRN,warmup=0', 'IBN', 'CBN'),
    *(
        'RBN,scale_stat=channel_std',
        'BGN',
        'SyncBGN',
        'BGN,num_groups=3',
        'BGN,num_groups=4',
        'BGN,num_groups=16',
        'BGN,num_groups=auto,batch_size=8',
    ),
}
MORE = [
    dict(type='SN', affine=False),
    dict(type='SN', track_running_stats=False),
    dict(type='RBN', scale=False),
    dict(type='RBN', scale_stat='channel_std', center=False, affine=False),
    dict(type='RBN', bias=False),
    dict(type='RBN', affine=False),
    dict(type='GBGN', channel_groups=2),
    dict(type='BRN', affine=False),
    dict(type='BRN', track_running_stats=False),
    dict(type='IBN', affine=False),
]


@pytest.fixture
def blended(monkeypatch):
    """Whether each call of a layer was computed as a blend."""
    calls, blend = [], PlaneNorm.on_plane.__globals__['blend']
    monkeypatch.setitem(PlaneNorm.on_plane.__globals__, 'blend', lambda *args: calls.append(1) or blend(*args))
    return calls


def results_of(layer, x, seed, twice):
    """Output, gradients, gradients of a function of the gradients, and buffers afterwards."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    inputs = [x, *layer.parameters()]
    y = layer(x)
    grads = torch.autograd.grad(y, inputs, seed, create_graph=twice)
    found = [y, *grads]
    if twice:
        # with a term of x: the gradient of a constant affine depends on nothing
        total = x.sin().sum() + sum(g.sin().sum() for g in grads)
        found += torch.autograd.grad(total, inputs, materialize_grads=True)
    return [value.detach() for value in found] + [buffer.clone() for buffer in layer.buffers()]


@pytest.mark.parametrize('twice', [False, True], ids=['once', 'twice'])
@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('shape', [(3, CHANNELS, 5, 2), (5, CHANNELS)], ids=str)
@pytest.mark.parametrize('case', [cfg for cfg in EVERY if described(cfg) in BLENDED] + MORE, ids=described)
def test_blend_is_what_statistics_defines(case, shape, training, twice, monkeypatch):
    layer = randomized(build(case).double()).train(training)
    if len(shape) == 2 and getattr(layer, 'num_groups', 1) > CHANNELS:
        pytest.skip('more groups than elements')
    if len(shape) == 2 and (case['type'] == 'IBN' or case.get('unbiased')):
        pytest.skip('refuses a single position')
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    x, seed = torch.randn(shape, dtype=torch.float64) * 2 + 1, torch.randn(shape, dtype=torch.float64)
    found = results_of(layer, x, seed, twice)
    layer.load_state_dict(state)
    monkeypatch.setattr(PlaneNorm, '_may_blend', lambda *_: False)
    for value, expected in zip(found, results_of(layer, x, seed, twice), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)


def test_layers_are_blends_where_their_statistics_have_that_form(blended):
    def is_blended(cfg):
        blended.clear()
        build(cfg)(torch.randn(4, CHANNELS, 4, 6, requires_grad=True))
        return bool(blended)

    assert {described(cfg) for cfg in EVERY if issubclass(NORMS[cfg['type']], PlaneNorm) and is_blended(cfg)} == BLENDED


def test_nothing_is_blended_that_has_rules_of_its_own(blended):
    layer, x = build(dict(type='SN')), torch.randn(4, CHANNELS, 4, 6)
    layer(x[:0])
    layer.bfloat16()(x.bfloat16())  # parameters in another type than statistics
    torch.func.vmap(layer.float().eval(), randomness='same')(x[None])
    assert not blended
    layer.train()(x)
    assert blended
