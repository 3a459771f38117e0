"""Each normalizer against its paper's equations spelled out on the full tensor, forward and backward, in float64."""

import math

import pytest
import torch
from torch import nn

from .cases import CHANNELS, build, described, randomized


def spread(v, x):
    return v.view(1, -1, *[1] * (x.dim() - 2))


def over(x, *dims, keepdim=True):
    """Mean and biased variance; dims count from the spatial axes if empty."""
    return x.mean(dims, keepdim=keepdim), x.var(dims, correction=0, keepdim=keepdim)


def spatial(x):
    return tuple(range(2, x.dim()))


def instance_mean(x):
    return x.reshape(*x.shape[:2], -1).mean(2).view(*x.shape[:2], *[1] * (x.dim() - 2))


def running(layer, x):
    return spread(layer.running_mean, x), spread(layer.running_var, x)


def bn_statistics(layer, x, training):
    return over(x, 0, *spatial(x)) if training else running(layer, x)


def affine_of(layer, x):
    return x * spread(layer.weight, x) + spread(layer.bias, x)


def affine(layer, x, mean, var):
    return affine_of(layer, (x - mean) / (var + layer.eps).sqrt())


def bn(layer, x, training):
    return affine(layer, x, *bn_statistics(layer, x, training))


def sn(layer, x, training, soft=lambda weight: weight.softmax(1)):
    mean, square = x.mean(spatial(x), True), x.square().mean(spatial(x), True)
    if layer.unbiased:  # the authors' code: of every instance, and the other scopes from these
        square = x.var(spatial(x), keepdim=True) + mean.square()
    scopes = [(m, s - m.square()) for m, s in ((mean, square), (mean.mean(1, True), square.mean(1, True)))]
    if layer.batch_stat:
        m, s = mean.mean(0, True), square.mean(0, True)
        scopes.append((m, s - m.square()) if training else running(layer, x))
    mixed = []
    for moment, weight in enumerate((layer.mean_weight, layer.var_weight)):
        weight = weight.reshape(layer.groups, -1)
        ratios = nn.functional.one_hot(weight.argmax(1), weight.shape[1]).double() if layer.hard else soft(weight)
        per_channel = [spread(r.repeat_interleave(CHANNELS // layer.groups), x) for r in ratios.T]
        mixed.append(sum(ratio * scope[moment] for ratio, scope in zip(per_channel, scopes)))
    return affine(layer, x, *mixed)


def ssn(layer, x, training):
    def sparsestmax(weight):
        """At radius 0: the nearest point of the simplex. test_ssn.py has the others."""
        rows = []
        for row in weight:
            tau = max((row.sort(descending=True).values[:k].sum() - 1) / k for k in range(1, len(row) + 1))
            rows.append((row - tau).clamp(min=0))
        return torch.stack(rows)

    return sn(layer, x, training, sparsestmax)


def rbn(layer, x, training):
    def statistic(kind, x):
        mean, var = over(x, *(spatial(x) if kind.startswith('channel') else (1,)))
        return mean if kind.endswith('mean') else (var + layer.eps).sqrt()

    if layer.center:
        x = x + spread(layer.center_weight, x) * statistic(layer.center_stat, x)
    mean, var = bn_statistics(layer, x, training)
    x_s = (x - mean) / (var + layer.eps).sqrt()
    gate = 1
    if layer.scale:
        feature = statistic(layer.scale_stat, x_s)
        gate = torch.sigmoid(spread(layer.scale_weight, x) * feature + spread(layer.scale_bias, x))
    return x_s * gate * spread(layer.weight, x) + spread(layer.bias, x)


def virtual_bn(layer, x):
    return torch.cat([affine(layer, part, *over(part, 0, *spatial(x))) for part in x.split(layer.virtual_batch_size)])


def bgn(layer, x, training):
    n, elements = x.shape[0], x[0].numel()
    flat = x.reshape(n, elements)
    weight, bias = (p.repeat_interleave(elements // CHANNELS) for p in (layer.weight, layer.bias))
    group_of = [d * layer.num_groups // elements for d in range(elements)]
    out = []
    for group in range(layer.num_groups):
        members = [d for d in range(elements) if group_of[d] == group]
        part = flat[:, members]
        mean, var = over(part, 0, 1) if training else (layer.running_mean[group], layer.running_var[group])
        out.append((part - mean) / (var + layer.eps).sqrt() * weight[members] + bias[members])
    return torch.cat(out, 1).view_as(x)


def gbgn(layer, x, training):
    groups = x.reshape(len(x), layer.channel_groups, -1)
    if layer.batch_groups == 'sample':
        mean, var = over(groups, 2)
    elif training:
        parts = [over(part, 0, 2) for part in groups.tensor_split(layer.batch_groups)]
        sizes = [len(part) for part in groups.tensor_split(layer.batch_groups)]
        mean, var = (torch.cat([p.expand(n, -1, 1) for p, n in zip(planes, sizes)]) for planes in zip(*parts))
    else:
        mean, var = layer.running_mean[None, :, None], layer.running_var[None, :, None]
    normalized = ((groups - mean) / (var + layer.eps).sqrt()).view_as(x)
    return normalized * spread(layer.weight, x) + spread(layer.bias, x)


def pn(layer, x, training):
    return affine(layer, x, *over(x, 1))


def brn(layer, x, training):
    if not training:
        return bn(layer, x, False)
    mean, var = over(x, 0, *spatial(x))
    progress = min(1, float(layer.num_batches_tracked) / layer.warmup) if layer.warmup else 1
    r_max, d_max = 1 + progress * (layer.r_max - 1), progress * layer.d_max
    mu, sigma = spread(layer.running_mean, x), (spread(layer.running_var, x) + layer.eps).sqrt()
    sigma_b = (var + layer.eps).sqrt()
    r = (sigma_b / sigma).detach().clamp(1 / r_max, r_max)
    d = ((mean - mu) / sigma).detach().clamp(-d_max, d_max)
    return ((x - mean) / sigma_b * r + d) * spread(layer.weight, x) + spread(layer.bias, x)


def ibn(layer, x, training):
    half = CHANNELS // 2
    own, batch = over(x, *spatial(x)), bn_statistics(layer, x, training)
    mean, var = (torch.cat([o[:, :half], b.expand_as(o)[:, half:]], 1) for o, b in zip(own, batch))
    return affine(layer, x, mean, var)


def newton(sigma, iterations):
    whitening = torch.eye(len(sigma)).to(sigma)
    for _ in range(iterations):
        whitening = 1.5 * whitening - 0.5 * torch.matrix_power(whitening, 3) @ sigma / sigma.trace()
    return whitening / sigma.trace().sqrt()


def gw(layer, x, training):
    out = []
    for sample in x:
        groups = sample.reshape(layer.num_groups, -1)
        groups = groups - groups.mean(1, keepdim=True)
        sigma = groups @ groups.T / groups.shape[1] + layer.eps * torch.eye(len(groups)).to(x)
        if layer.method == 'zca':
            values, vectors = torch.linalg.eigh(sigma)
            whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        else:
            whitening = newton(sigma, layer.iterations)
        out.append((whitening @ groups).view_as(sample))
    return torch.stack(out) * spread(layer.weight, x) + spread(layer.bias, x)


def bw(layer, x, training):
    """The authors' code (github.com/huangleiBuaa/IterNorm-pytorch, extension/normailzation/iterative_normalization.py)
    was run beside BW once, on the same correlated tensors of shape (4, 8, 5, 6) in groups of 2, 4 and 8 channels, in
    training and evaluation: result, gradients and running statistics differ by at most 2e-15 of the largest in float64,
    and by 3e-6 in float32.
    """
    groups = x.transpose(0, 1).reshape(layer.num_groups, CHANNELS // layer.num_groups, -1)
    mean = groups.mean(2, keepdim=True) if training else layer.running_mean.view(*groups.shape[:2], 1)
    out = []
    for group, (values, center) in enumerate(zip(groups, mean)):
        if not training and layer.tracked == 'matrix':
            whitening = layer.running_wm[group]
        else:
            sigma = torch.cov(values, correction=0).view(len(values), -1) if training else layer.running_cov[group]
            whitening = newton(sigma + layer.eps * torch.eye(len(values)).to(x), layer.iterations)
        out.append(whitening @ (values - center))
    return affine_of(layer, torch.stack(out).view(CHANNELS, len(x), *x.shape[2:]).transpose(0, 1))


def sw(layer, x, training, released=False):
    """The authors' code (github.com/XingangPan/Switchable-Whitening, models/ops/switchwhiten.py) was run beside SW
    once, in float64, on the same correlated tensors of shape (4, 8, 5, 6) in groups of 4 channels, in training and
    evaluation. With 2 members result, gradients and running statistics differ by at most 3e-15 of the largest; with 3
    and 5, its variance of LN made biased and the ratios of BN and IN made their own, by as little; as it is, the result
    differs by 2e-3 with 3 members and by 1.1e-1 with 5. ``released`` is as it is; test_whitening.py has the difference.
    """
    count, groups = len(x), layer.num_groups
    rows = x.reshape(count, groups, CHANNELS // groups, -1)
    of_batch = rows.permute(1, 2, 0, 3).flatten(2)
    if training:
        batch = of_batch.mean(2), torch.stack([torch.cov(group, correction=0) for group in of_batch])
    else:
        batch = layer.running_mean.view(of_batch.shape[:2]), layer.running_cov
    mean_ratios = layer.sw_mean_weight.softmax(0)
    ratios = mean_ratios if layer.tie_weight else layer.sw_var_weight.softmax(0)
    if released and layer.members == 5:  # the variances of BN and IN have the ratios of BW and IW
        ratios = ratios[[0, 1, 0, 1, 4]]
    out = []
    for sample in rows:
        layer_mean, layer_var = sample.mean(), sample.var(correction=int(released))
        for group, values in enumerate(sample):
            of_bw = batch[0][group], batch[1][group]
            of_iw = values.mean(1), torch.cov(values, correction=0)
            of_ln = layer_mean.expand(len(values)), layer_var * torch.eye(len(values)).to(x)
            members = [of_bw, of_iw, *((mean, cov.diag().diag()) for mean, cov in (of_bw, of_iw)), of_ln]
            members = [members[k] for k in {2: (0, 1), 3: (0, 1, 4), 5: range(5)}[layer.members]]
            mean, sigma = (
                sum(share * value for share, value in zip(shares, of_members))
                for shares, of_members in zip((mean_ratios, ratios), zip(*members))
            )
            whitening = newton(sigma + layer.eps * torch.eye(len(values)).to(x), layer.iterations)
            out.append(whitening @ (values - mean[:, None]))
    return affine_of(layer, torch.stack(out).view_as(x))


def frn(layer, x, training):
    eps = layer.eps + (layer.eps_l.abs() if layer.learnable_eps else 0)
    y = affine_of(layer, x / (instance_mean(x.square()) + eps).sqrt())
    return torch.maximum(y, spread(layer.tau, x)) if layer.tlu else y


def iebn(layer, x, training):
    """The authors' code (github.com/gbup-group/IEBN, models/cifar/iebn_resnet.py) was run beside IEBN once, on the
    same tensors of shape (4, 8, 5, 6), in training and evaluation: result, gradients and running statistics differ by
    at most 4e-16 of the largest in float64, and by 4e-7 in float32.
    """
    gate = torch.sigmoid(spread(layer.weight_readjust, x) * instance_mean(x) + spread(layer.bias_readjust, x))
    mean, var = bn_statistics(layer, x, training)
    return affine_of(layer, gate * (x - mean) / (var + layer.eps).sqrt())


def bcn(layer, x, training):
    """The authors' code (github.com/joe-siyuan-qiao/Batch-Channel-Normalization, README.md), both of its forms, was run
    beside BCN once, on the same tensors of shape (4, 8, 5, 6) and 2 groups, in training and evaluation: result,
    gradients and running statistics differ by at most 2e-15 of the largest in float64, and by 4e-7 in float32.
    """
    mean, var = bn_statistics(layer, x, training)
    if layer.estimate and training:
        held = running(layer, x)
        found = mean, (x - held[0]).square().mean((0, *spatial(x)), True)
        mean, var = ((old + layer.momentum * (new - old)).detach() for old, new in zip(held, found))
    y = spread(layer.bn_weight, x) * (x - mean) / (var + layer.eps).sqrt() + spread(layer.bn_bias, x)
    groups = y.reshape(len(x), layer.num_groups, -1)
    mean, var = over(groups, 2)
    normalized = (groups - mean) / (var + layer.eps).sqrt()
    return (normalized * layer.weight[:, None] + layer.bias[:, None]).view_as(x)


def ilm(layer, x, training):
    """The authors' code (github.com/Gasoonjia/ILM-Norm, lib/nn/ilm_gn.py, ilm_in.py, ilm_ln.py) was run beside ILM
    once, in float64, on the same tensors of 64 and 512 channels. With its variances made biased, result and gradients
    differ by at most 2e-14 of the largest; as it is, by up to 1.8e-2 on maps of 6 x 6 and 7e-4 on 28 x 28.
    """
    key_mean, key_var = over(x.reshape(len(x), layer.key_groups, -1), 2, keepdim=False)
    gamma = ((key_var @ layer.embedding.T).relu() @ layer.weight_decoder.T).sigmoid()
    beta = ((key_mean @ layer.embedding.T).relu() @ layer.bias_decoder.T).tanh()
    gamma, beta = (
        (p.repeat_interleave(CHANNELS // layer.key_groups, 1) + own).view(len(x), -1, *[1] * (x.dim() - 2))
        for p, own in ((gamma, layer.weight), (beta, layer.bias))
    )
    groups = x.reshape(len(x), layer.num_groups, -1)
    mean, var = over(groups, 2)
    return ((groups - mean) / (var + layer.eps).sqrt()).view_as(x) * gamma + beta


def mabn(layer, x, training):
    """Without steps that are counted; test_mabn.py has those."""
    if not training:
        return bn(layer, x, False)  # whose running mean is 0
    return affine_of(layer, x / (x.square().mean((0, *spatial(x)), True) + layer.eps).sqrt())


def evalnorm(layer, x, training):
    mean, var = bn_statistics(layer, x, training)
    if not training:
        (mu, v), a, b = over(x, *spatial(x)) if x.dim() > 2 else (x, 0 * x), layer.alpha, layer.beta
        mean, var = a * mu + (1 - a) * mean, b * v + (1 - b) * var + b * (1 - b) * (mu - mean).square()
    return affine(layer, x, mean, var)


REFERENCES = dict(
    SN=sn,
    SSN=ssn,
    RBN=rbn,
    EN=evalnorm,
    BGN=bgn,
    GBGN=gbgn,
    PN=pn,
    BRN=brn,
    IBN=ibn,
    GW=gw,
    BW=bw,
    SW=sw,
    FRN=frn,
    IEBN=iebn,
    BCN=bcn,
    ILM=ilm,
    CBN=bn,  # without a convolution: test_cbn.py has the rest
    MABN=mabn,
    FrozenBN=lambda layer, x, training: bn(layer, x, False),
)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('shape', [(4, CHANNELS), (5, CHANNELS, 6), (4, CHANNELS, 4, 5), (3, CHANNELS, 3, 2, 4)])
def test_equals_the_papers_equations_forward_and_backward(cfg, shape, training):
    layer = randomized(build(cfg).double()).train(training)
    if 'num_batches_tracked' in layer.state_dict():
        layer.num_batches_tracked.fill_(2500)  # half of BRN's warm-up
    name = cfg['type'].removeprefix('Sync')
    no_positions = len(shape) == 2
    most_groups = CHANNELS - (name == 'ILM')
    if no_positions and (name in ('IBN', 'GW', 'SN', 'SSN', 'SW') or getattr(layer, 'num_groups', 0) > most_groups):
        pytest.skip('without meaning there, or another equation: see test_sn.py')
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    if name == 'RBN' and no_positions and 'spatial' not in described(cfg):
        # the channel statistics of one value: itself, and no deviation
        reference = rbn(layer, x[:, :, None], training)[:, :, 0]
    elif name == 'EN' and layer.virtual_batch_size and training:
        reference = virtual_bn(layer, x)
    else:
        reference = REFERENCES[name](layer, x, training)
    grad = torch.randn_like(x)
    inputs = (x, *layer.parameters())
    expected_grads = torch.autograd.grad(reference, inputs, grad)
    y = layer(x)
    torch.testing.assert_close(y, reference)
    for ours, theirs in zip(torch.autograd.grad(y, inputs, grad), expected_grads):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('momentum', [0.1, None])
@pytest.mark.parametrize('kind', ['SN', 'RBN', 'EN', 'BRN', 'IBN', 'SyncSN'])
def test_running_statistics_are_kept_as_torch_keeps_them(kind, momentum):
    ours, theirs = build(dict(type=kind, momentum=momentum)), nn.BatchNorm2d(CHANNELS, momentum=momentum)
    for _ in range(3):
        x = torch.randn(3, CHANNELS, 5, 5) * 2 + 1
        ours(x)
        theirs(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize(
    'single, cfg_of_ours, x',
    [
        (nn.BatchNorm2d(CHANNELS), dict(type='BGN', num_groups=CHANNELS), torch.randn(3, CHANNELS, 5, 5)),
        (nn.GroupNorm(1, CHANNELS), dict(type='BGN', num_groups=1), torch.randn(1, CHANNELS, 5, 5)),
        (nn.BatchNorm2d(CHANNELS), dict(type='GBGN', channel_groups=CHANNELS), torch.randn(3, CHANNELS, 5, 5)),
        (
            nn.GroupNorm(4, CHANNELS),
            dict(type='GBGN', batch_groups='sample', channel_groups=4),
            torch.randn(3, CHANNELS, 5, 5),
        ),
        (nn.BatchNorm2d(CHANNELS), dict(type='BRN', r_max=1.0, d_max=0.0), torch.randn(3, CHANNELS, 5, 5)),
    ],
    ids=lambda v: described(v) if isinstance(v, dict) else '',
)
def test_identities(single, cfg_of_ours, x):
    layer = build(cfg_of_ours)
    for _ in range(3):
        torch.testing.assert_close(layer(x), single(x), rtol=1e-4, atol=1e-5)
    if not (cfg_of_ours['type'] == 'BGN' and isinstance(single, nn.GroupNorm)):  # LN keeps no running statistics
        torch.testing.assert_close(layer.eval()(x), single.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('groups', [3, 5, 16, 24, 100])
def test_bgn_has_one_answer_for_every_way_to_cut(groups):
    """The running statistics, too, are those of the elements that floor(d G / D) says."""
    layer, x = (
        build(dict(type='BGN', num_groups=groups, momentum=1.0)).double(),
        torch.randn(3, CHANNELS, 5, 6).double(),
    )
    layer(x)
    flat = x.flatten(1)
    group_of = torch.arange(flat.shape[1]) * groups // flat.shape[1]
    for group in range(groups):
        members = flat[:, group_of == group]
        torch.testing.assert_close(layer.running_mean[group], members.mean())
        torch.testing.assert_close(layer.running_var[group], members.var())


def test_bgn_auto_follows_table_2():
    table = {128: 512, 64: 256, 32: 128, 16: 64, 8: 16, 4: 2, 2: 1}
    for batch_size, groups in table.items():
        assert build(dict(type='BGN', num_groups='auto', batch_size=batch_size)).num_groups == groups
    assert build(dict(type='BGN', num_groups='auto', batch_size=24)).num_groups == round(64 * 2 ** math.log2(24 / 16))


def test_brn_reaches_its_limits_after_the_warm_up():
    layer = build(dict(type='BRN', warmup=4, momentum=1e-9))
    x = torch.randn(8, CHANNELS, 9, 9) * 5 + 7  # far from the running statistics
    scales = [float(layer(x).std().detach()) for _ in range(6)]
    assert scales == pytest.approx([1, 1.25, 1.5, 1.75, 2, 2], rel=1e-3)


def test_gw_zca_stays_finite_on_a_singular_covariance():
    layer = build(dict(type='GW', num_groups=64, method='zca'), 64)
    for scale in (1, 100, 1000):
        x = (torch.randn(2, 64, 5, 5) * scale).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        assert y.abs().max() < 100 and x.grad.isfinite().all()


def test_gw_whitens():
    x = torch.randn(2, CHANNELS, 16, 16)
    x = torch.einsum('dc,nchw->ndhw', torch.randn(CHANNELS, CHANNELS) / 2 + torch.eye(CHANNELS), x)
    for cfg, tolerance in (
        (dict(type='GW', num_groups=4, method='zca'), 1e-3),
        (dict(type='GW', num_groups=4, iterations=12), 1e-2),
    ):
        groups = build(cfg)(x).reshape(2, 4, -1)
        covariance = groups @ groups.mT / groups.shape[2]
        torch.testing.assert_close(covariance, torch.eye(4).expand(2, 4, 4), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    'cfg_of_ours, message',
    [
        (dict(type='SN', groups=3), 'SN: groups=3 does not divide 8 channels; choose one of 1, 2, 4, 8'),
        (dict(type='RBN', center_stat='mean'), "RBN(8): center_stat must be one of 'channel_mean', 'channel_std', "),
        (dict(type='EN', mode='on'), "EN(8): mode must be one of 'rule', 'simple', 'online', 'offline', got 'on'"),
        (dict(type='EN', batch_size=0), 'EN(8): batch_size must be a positive integer or None, got 0'),
        (dict(type='SyncEN', virtual_batch_size=2), 'SyncEN: virtual_batch_size makes normalization batches smaller'),
        (dict(type='BGN', num_groups='auto'), "BGN: num_groups='auto' needs batch_size"),
        (dict(type='BGN', num_groups=0), "BGN(8): num_groups must be a positive integer or 'auto', got 0"),
        (dict(type='GBGN', channel_groups=3), 'GBGN: channel_groups=3 does not divide 8 channels; choose one of 1, 2'),
        (
            dict(type='GBGN', batch_groups=0),
            "GBGN(8): batch_groups must be a positive integer or 'sample', got 0",
        ),
        (dict(type='BRN', r_max=0.5), 'BRN(8): r_max must be a finite number of at least 1, got 0.5'),
        (dict(type='GW', num_groups=3), 'GW: num_groups=3 does not divide 8 channels; choose one of 1, 2, 4, 8'),
        (dict(type='GW', method='pca'), "GW(8): method must be one of 'iterative', 'zca', got 'pca'"),
    ],
)
def test_bad_arguments_are_named(cfg_of_ours, message):
    with pytest.raises(ValueError) as error:
        build(cfg_of_ours)
    assert message in str(error.value)


@pytest.mark.parametrize(
    'cfg_of_ours, shape, message',
    [
        (dict(type='BGN', num_groups=9), (2, CHANNELS), 'BGN: num_groups=9, but a sample of shape (8,) has only 8'),
        (dict(type='GW'), (2, CHANNELS), 'GW with num_groups=8 has one value per group'),
        (dict(type='IBN'), (2, CHANNELS), 'IBN normalizes half of the channels over the positions of a sample'),
    ],
)
def test_input_without_what_the_method_needs_is_named(cfg_of_ours, shape, message):
    with pytest.raises(ValueError) as error:
        build(cfg_of_ours)(torch.randn(shape))
    assert message in str(error.value)
