"""`mmnorm norms`: what is where in the networks of configs, and what a norm_cfg left BN."""

import pytest

from mmnorm.cli import main
from tests.processes import ROOT


@pytest.fixture
def norms(capsys):
    """Run the command; return its table, a list of words for each row, and what it says below."""

    def run(*argv):
        assert main(['norms', *map(str, argv)]) == 0
        said = capsys.readouterr().out
        lines = said.splitlines()
        table = [line.split() for line in lines if line.startswith(' ')]
        return table, '\n'.join(line for line in lines if not line.startswith(' '))

    return run


def test_frozen_xbn(norms):
    table, rest = norms(ROOT / 'configs/mask_rcnn_xbn_r50.py')
    assert table[0] == ['part', 'norm', 'layers', 'channels', 'state']
    assert ['backbone.stage1', 'FrozenBN', '7', '64', 'to', '256', 'fixed'] in table
    assert ['backbone.stage1', 'GN', '3', '64', 'fixed'] in table
    assert ['backbone.stage4', 'GN', '3', '512', 'trains'] in table
    assert not rest  # XBN keeps BNs by design


def test_live_norms_and_options(norms):
    table, rest = norms(ROOT / 'configs/mask_rcnn_xbn_r50_digits.py')
    assert {row[-1] for row in table[1:]} == {'trains'} and not rest
    options = ('--cfg-options', 'model.backbone.norm_eval=True', 'model.backbone.frozen_stages=1')
    table, _ = norms(ROOT / 'configs/mask_rcnn_xbn_r50_digits.py', *options)
    states = {(row[0], row[1]): row[-1] for row in table[1:]}
    assert states['backbone.stage1', 'BN'] == states['backbone.stage1', 'GN'] == 'fixed'
    assert states['backbone.stage2', 'BN'] == 'held' and states['backbone.stage2', 'GN'] == 'trains'


def test_a_line_for_each_layer(norms):
    parts, _ = norms(ROOT / 'configs/pspnet_xbn_r50_digits.py')
    layers, _ = norms(ROOT / 'configs/pspnet_xbn_r50_digits.py', '--layers')
    assert layers[0] == ['layer', 'norm', 'channels', 'state']
    assert len(layers) - 1 == sum(int(row[2]) for row in parts[1:])
    assert layers[1][0].startswith('backbone.stem')


@pytest.mark.parametrize(
    ('base', 'part', 'left'),
    [
        ('mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py', 'neck', 'DilatedEncoder'),
        ('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py', 'backbone.arms', '5 of STDCContextPathNet'),
    ],
)
def test_what_a_norm_cfg_left_bn(norms, tmp_path, base, part, left):
    config = tmp_path / 'config.py'
    parts = ('model.backbone', *['model.backbone.backbone_cfg'] * ('stdc' in base))
    config.write_text(f"_base_ = {base!r}\ncustom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)\n")
    table, rest = norms(config, '--cfg-options', *(f'{name}.norm_cfg.type=SN' for name in parts))
    assert any(row[1] == 'SN' for row in table) and any(row[0].startswith(part) and row[1] == 'BN' for row in table)
    assert rest.startswith('norm_cfg names SN, but these are still BN: ') and left in rest
