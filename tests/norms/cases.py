"""Every registered normalizer, and the variants that its arguments make: what all promises are tested over."""

import contextlib

import torch
from mmcv.cnn import build_norm_layer

from mmnorm.norms import NORMS

CHANNELS = 8
VARIANTS = [
    dict(type='SN', groups=2),
    dict(type='SN', batch_stat=False),
    dict(type='SN', hard=True),
    dict(type='SN', unbiased=True),
    dict(type='RBN', scale_stat='channel_std'),
    dict(type='RBN', center_stat='channel_std', scale=False),
    dict(type='RBN', center_stat='spatial_mean', scale_stat='spatial_std'),
    dict(type='RBN', center_stat='spatial_std', scale_stat='spatial_mean'),
    dict(type='RBN', center=False),
    dict(type='EN', mode='simple', batch_size=4),
    dict(type='EN', mode='online'),
    dict(type='EN', mode='offline'),
    dict(type='EN', virtual_batch_size=2),
    dict(type='EN', mode='online', virtual_batch_size=2),
    dict(type='BGN', num_groups=4),
    dict(type='BGN', num_groups=3),
    dict(type='BGN', num_groups=16),
    dict(type='BGN', num_groups='auto', batch_size=8),
    dict(type='GBGN', batch_groups=2, channel_groups=4),
    dict(type='GBGN', batch_groups='sample', channel_groups=2),
    dict(type='BRN', warmup=0),
    dict(type='GW', num_groups=4),
    dict(type='GW', num_groups=4, method='zca'),
    dict(type='GW', num_groups=2, eps=0),
    dict(type='GW', num_groups=2, eps=0, method='zca'),
    dict(type='FRN', tlu=True),
    dict(type='FRN', learnable_eps=True),
    dict(type='BCN', num_groups=2),
    dict(type='BCN', num_groups=2, estimate=True),
    dict(type='ILM', num_groups=2, key_channels=2),
    dict(type='ILM', base='IN'),
    dict(type='ILM', base='LN'),
    dict(type='SSN', groups=2),
    dict(type='SSN', batch_stat=False),
    dict(type='SSN', hard=True),
    dict(type='BW', channels_per_group=4),
    dict(type='BW', num_groups=2, tracked='covariance', iterations=7),
    dict(type='SW', num_groups=2, members=3),
    dict(type='SW', num_groups=2, members=5, tie_weight=True),
]
EVERY = [dict(type=name) for name in NORMS] + VARIANTS


def described(cfg):
    return ','.join([cfg['type'], *(f'{key}={value}' for key, value in cfg.items() if key != 'type')])


def build(cfg, channels=CHANNELS):
    with seeded():
        return build_norm_layer(cfg, channels)[1]


@contextlib.contextmanager
def seeded():
    """What starts at random, as ILM's decoders do, starts as in every other such context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def randomized(layer):
    """The layer, with values in the place of the defaults that would make half of it the identity."""
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            learned = any(part in name for part in ('_weight', '_bias', '_readjust'))
            if learned or name in ('weight', 'bias', 'running_mean', 'tau', 'eps_l'):
                value.normal_()
            elif name == 'running_var':
                value.uniform_(0.5, 2)
            elif name in ('running_wm', 'running_cov'):
                factor = torch.eye(value.shape[-1], dtype=value.dtype) + 0.2 * torch.randn_like(value)
                value.copy_(factor @ factor.mT)
    return layer
