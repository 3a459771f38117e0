"""Only the type of a norm_cfg is changed: what else stood there for a stock norm stays, and is noted."""

import warnings

import pytest
import torch

from mmnorm.norms import NORMS, PlaneNorm
from mmnorm.norms.arguments import known_arguments

from .cases import build

# what norm_cfg has in the configs of mmdet and mmseg, and the defaults that some write out
STOCK = dict(
    BN=[
        dict(requires_grad=True),
        dict(requires_grad=False),
        dict(momentum=0.03, eps=0.001),
        dict(eps=0.001, affine=True),
    ],
    SyncBN=[dict(requires_grad=True, momentum=0.01, eps=1e-3), dict(process_group=None)],
    MMSyncBN=[dict(requires_grad=True, stats_mode='default'), dict(stats_mode='N', group=None)],
    GN=[dict(num_groups=32, requires_grad=True), dict(num_groups=36), dict(num_groups=16, eps=1e-6)],
    IN=[dict(affine=True), dict(affine=False, momentum=0.1)],
    LN=[dict(eps=1e-6), dict(elementwise_affine=True)],
    FrozenBN=[dict(eps=1e-5), dict(requires_grad=False)],
)
CHANNELS = 288  # 32 and 36 groups divide it
PAIRS = [(f'{stock},{cfg}', cfg, name) for stock, cfgs in STOCK.items() for cfg in cfgs for name in NORMS]


def without_meaning(norm, cfg):
    """The arguments that say nothing to a norm."""
    no_statistics = ('momentum', 'track_running_stats') if not issubclass(norm, PlaneNorm) else ()
    fixed = ('momentum',) if norm.__name__ == 'FrozenBN' else ()
    ours = {*known_arguments(norm), 'requires_grad'} - {*no_statistics, *fixed}
    return [key for key, value in cfg.items() if key not in ours and value is not None]


@pytest.mark.parametrize('stock, cfg_kept, name', PAIRS, ids=[f'{stock}-{name}' for stock, _, name in PAIRS])
def test_it_builds_and_computes_as_without_what_has_no_meaning(stock, cfg_kept, name):
    norm = NORMS[name]
    dropped = without_meaning(norm, cfg_kept)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        layer = build(dict(cfg_kept, type=name), CHANNELS)
        build(dict(cfg_kept, type=name), CHANNELS)
    said = [str(w.message) for w in caught]
    for key in dropped:
        assert sum(text.startswith(name) and key in text and 'no effect' in text for text in said) == 1, key
    changed = 'BGN' in name and name != 'GBGN' and cfg_kept.get('num_groups') == 32
    assert len(said) == len(dropped) + changed, said
    if changed:
        assert said[0].startswith(f'{name}: num_groups=32 is what stock configs have for GN')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = build({'type': name} | {k: v for k, v in cfg_kept.items() if k not in dropped}, CHANNELS)
        x = torch.randn(2, CHANNELS, 3, 4)
        for training in (True, False):
            y = layer.train(training)(x)
            assert y.isfinite().all()
            torch.testing.assert_close(y, expected.train(training)(x))
    assert all(p.requires_grad == cfg_kept.get('requires_grad', True) for p in layer.parameters())


@pytest.mark.parametrize('name', NORMS)
def test_what_means_something_under_another_name_is_not_dropped(name):
    with pytest.raises(ValueError, match=rf'{name}\(8\): elementwise_affine=False is of LN; write affine=False'):
        build(dict(type=name, elementwise_affine=False))


def test_arguments_of_another_of_ours_are_refused():
    for cfg in (dict(type='RBN', groups=2), dict(type='SN', mode='rule'), dict(type='PN', frozen_stages=1)):
        with pytest.raises(TypeError, match=f'{cfg["type"]}.8.: unknown argument '):
            build(cfg)


def test_bgn_says_that_a_batch_size_without_auto_has_no_effect():
    with pytest.warns(UserWarning, match="BGN: batch_size has no effect, since num_groups is not 'auto'"):
        build(dict(type='BGN', batch_size=4))
