"""ResNet-50s in the layouts of other code, made up name by name, and what they compute, from the papers' formulas."""

import torch
from torch.nn import functional as F

BLOCKS = (3, 4, 6, 3)
WIDTH = 8


def bn_tensors(channels):
    return dict(
        weight=torch.rand(channels) + 0.5,
        bias=torch.randn(channels) / 4,
        running_mean=torch.randn(channels) / 4,
        running_var=torch.rand(channels) * 1.5 + 0.5,
        num_batches_tracked=torch.tensor(7),
    )


def gn_tensors(channels):
    return {leaf: value for leaf, value in bn_tensors(channels).items() if leaf in ('weight', 'bias')}


def sn_tensors(channels, sources=3):
    bn = bn_tensors(channels)
    tensors = dict(
        weight=bn['weight'].view(1, -1, 1, 1),
        bias=bn['bias'].view(1, -1, 1, 1),
        mean_weight=torch.randn(sources),
        var_weight=torch.randn(sources),
    )
    if sources == 3:
        tensors.update(running_mean=bn['running_mean'].view(1, -1, 1), running_var=bn['running_var'].view(1, -1, 1))
    return tensors


def ssn_tensors(channels):
    """Weights that are their own ratios: points of the simplex not nearer to its middle than the radius."""
    ended = bool(torch.rand(()) < 0.5)
    weight = torch.eye(3)[0] if ended else torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    return dict(
        sn_tensors(channels),
        mean_weight=weight[torch.randperm(3)],
        var_weight=weight[torch.randperm(3)],
        radius=torch.tensor([(2 / 3) ** 0.5 if ended else 0.4]),
        mean_fixed=torch.tensor([int(ended)]),
        var_fixed=torch.tensor([int(ended)]),
    )


def sw_tensors(channels, size=4, tied=False):
    bn, factor = bn_tensors(channels), torch.randn(channels // size, size, 2 * size, dtype=torch.float64)
    tensors = dict(
        weight=bn['weight'],
        bias=bn['bias'],
        running_mean=bn['running_mean'].view(-1, size, 1),
        running_cov=factor @ factor.mT / (2 * size),
        sw_mean_weight=torch.randn(2),
        sw_var_weight=torch.randn(2),
    )
    return {leaf: value for leaf, value in tensors.items() if not (tied and leaf == 'sw_var_weight')}


def rbn_tensors(channels):
    bn = bn_tensors(channels)
    own = {leaf: torch.randn(1, channels, 1, 1) / 4 for leaf in ('center_weight', 'scale_weight', 'scale_bias')}
    return dict(bn, weight=bn['weight'].view(1, -1, 1, 1), bias=bn['bias'].view(1, -1, 1, 1), **own)


def ibn_tensors(channels):
    first = gn_tensors(channels // 2)
    return {
        **{f'IN.{leaf}': value for leaf, value in first.items()},
        **{f'BN.{leaf}': value for leaf, value in bn_tensors(channels - channels // 2).items()},
    }


def resnet50(tensors_of, width=WIDTH, blocks=BLOCKS):
    """A state dict under torchvision's names, in float64; ``tensors_of(name, channels)`` makes those of a norm."""
    state = {}

    def conv(name, out, into, size):
        state[f'{name}.weight'] = torch.randn(out, into, size, size) * (1 / (into * size * size)) ** 0.5

    def norm(name, channels):
        state.update({f'{name}.{leaf}': value for leaf, value in tensors_of(name, channels).items()})

    conv('conv1', width, 3, 7)
    norm('bn1', width)
    into = width
    for stage, number in enumerate(blocks):
        planes = width * 2**stage
        for block in range(number):
            name = f'layer{stage + 1}.{block}'
            for i, (out, into_conv, size) in enumerate(
                [(planes, into, 1), (planes, planes, 3), (4 * planes, planes, 1)], start=1
            ):
                conv(f'{name}.conv{i}', out, into_conv, size)
                norm(f'{name}.bn{i}', out)
            if block == 0:
                conv(f'{name}.downsample.0', 4 * planes, into, 1)
                norm(f'{name}.downsample.1', 4 * planes)
            into = 4 * planes
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


def with_classifier(state):
    return {**state, 'fc.weight': torch.randn(10, 32 * WIDTH), 'fc.bias': torch.zeros(10)}


def forward(state, x, norm, pool_padding=1):
    """Output of each stage; ``norm(tensors, x)`` is the formula of the norms."""

    def conv(x, name, stride=1, padding=0):
        return F.conv2d(x, state[f'{name}.weight'], stride=stride, padding=padding)

    def normed(x, name):
        return norm(
            {key.removeprefix(f'{name}.'): value for key, value in state.items() if key.startswith(f'{name}.')}, x
        )

    x = F.max_pool2d(normed(conv(x, 'conv1', 2, 3), 'bn1').relu(), 3, 2, pool_padding, ceil_mode=not pool_padding)
    outputs = []
    for stage, number in enumerate(BLOCKS):
        for block in range(number):
            name = f'layer{stage + 1}.{block}'
            stride = 2 if stage and not block else 1
            shortcut = normed(conv(x, f'{name}.downsample.0', stride), f'{name}.downsample.1') if block == 0 else x
            y = normed(conv(x, f'{name}.conv1'), f'{name}.bn1').relu()
            y = normed(conv(y, f'{name}.conv2', stride, 1), f'{name}.bn2').relu()
            x = (normed(conv(y, f'{name}.conv3'), f'{name}.bn3') + shortcut).relu()
        outputs.append(x)
    return outputs


def bn(t, x):
    return F.batch_norm(x, t['running_mean'], t['running_var'], t['weight'], t['bias'])


def gn(t, x):
    return F.group_norm(x, min(64, x.shape[1]), t['weight'], t['bias'])


def bn_or_gn(t, x):
    return bn(t, x) if 'running_mean' in t else gn(t, x)


def sn(t, x, correction=0):
    """sn, Eq. 3 to 5, in evaluation; with ``correction=1`` as in the authors' code, by unbiased variances."""
    return mixed(t, x, t['mean_weight'].softmax(0), t['var_weight'].softmax(0), correction)


def ssn(t, x):
    """In evaluation as the authors' code, by unbiased variances, of weights that are their own ratios."""
    return mixed(t, x, t['mean_weight'], t['var_weight'], 1)


def mixed(t, x, mean_ratios, var_ratios, correction):
    m, v = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=correction, keepdim=True)
    m_ln = m.mean(1, keepdim=True)
    means = [m, m_ln]
    variances = [v, (v + m**2).mean(1, keepdim=True) - m_ln**2]
    if 'running_mean' in t:
        means.append(t['running_mean'].view(1, -1, 1, 1))
        variances.append(t['running_var'].view(1, -1, 1, 1))
    mean = sum(w * part for w, part in zip(mean_ratios, means))
    var = sum(w * part for w, part in zip(var_ratios, variances))
    return (x - mean) / (var + 1e-5).sqrt() * t['weight'] + t['bias']


def bn_or_sw(t, x):
    """SW, Eq. 4 to 6, of two members, in evaluation, by 5 of Newton's iterations."""
    if 'running_cov' not in t:
        return bn(t, x)
    groups, size = t['running_cov'].shape[:2]
    values = x.view(len(x), groups, size, -1)
    m = values.mean(3, keepdim=True)
    w, u = t['sw_mean_weight'].softmax(0), t.get('sw_var_weight', t['sw_mean_weight']).softmax(0)
    own = (values - m) @ (values - m).mT / values.shape[3]
    sigma = u[0] * t['running_cov'] + u[1] * own + 1e-5 * torch.eye(size)
    trace = sigma.diagonal(dim1=2, dim2=3).sum(2)[..., None, None]
    root = torch.eye(size, dtype=x.dtype)
    for _ in range(5):
        root = 1.5 * root - 0.5 * root @ root @ root @ (sigma / trace)
    y = root / trace.sqrt() @ (values - w[0] * t['running_mean'] - w[1] * m)
    return y.view(x.shape) * t['weight'].view(-1, 1, 1) + t['bias'].view(-1, 1, 1)


def rbn(t, x):
    """rbn, Eq. 5 and 9, in evaluation."""
    x = x + t['center_weight'] * x.mean((2, 3), keepdim=True)
    x = F.batch_norm(x, t['running_mean'], t['running_var'])
    gate = torch.sigmoid(t['scale_weight'] * x.mean((2, 3), keepdim=True) + t['scale_bias'])
    return x * gate * t['weight'] + t['bias']


def bn_or_ibn(t, x):
    """IBN-Net-a's layer in evaluation: IN with affine on one half of the channels, BN on the other."""
    if 'IN.weight' not in t:
        return bn(t, x)
    half = len(t['IN.weight'])
    halves = {
        part: {leaf.removeprefix(f'{part}.'): value for leaf, value in t.items() if leaf.startswith(part)}
        for part in ('IN', 'BN')
    }
    first = F.instance_norm(x[:, :half], weight=halves['IN']['weight'], bias=halves['IN']['bias'])
    return torch.cat([first, bn(halves['BN'], x[:, half:])], dim=1)
