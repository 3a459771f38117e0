"""tools/convert_checkpoint.py, and conversion against the network of a config."""

import pytest
import torch
from mmdet.models.backbones import ResNet

from mmnorm import EN
from mmnorm.cli import convert, run_command
from mmnorm.convert import LAYOUTS, TARGETS, convert_file
from mmnorm.engine import read_checkpoint
from mmnorm.engine.networks import build_network, harden_files, read_config
from mmnorm.openmmlab.mmdet_models import XBNResNet

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning', 'ignore::DeprecationWarning')

RETINANET = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
norm = dict(type={norm!r})
model = dict(
    backbone=dict(depth=18, base_channels=8, norm_cfg=norm, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16, norm_cfg=norm),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1, norm_cfg=norm))
"""
C4 = """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'
custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
norm = dict(type='SN')
model = dict(
    backbone=dict(depth=18, norm_cfg=norm, init_cfg=None), rpn_head=dict(in_channels=256),
    roi_head=dict(shared_head=dict(depth=18, norm_cfg=norm, init_cfg=None)))
"""
SEGMENTER = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder', backbone=dict({backbone}),
    decode_head=dict(type='FCNHead', in_channels=64, channels=8, num_classes=2, in_index=3, norm_cfg=dict(type='BN')))
"""


@pytest.fixture
def main():
    # its own lists, so that --help is quick
    assert set(convert.LAYOUTS) == {*LAYOUTS, 'auto'} and set(convert.NORMS) == set(TARGETS)
    return lambda argv: run_command('convert', argv)


@pytest.fixture
def config(tmp_path):
    def write(text, name='config.py', **fields):
        path = tmp_path / name
        path.write_text(text.format(**fields))
        return str(path)

    return write


@pytest.fixture
def source(tmp_path):
    """A ResNet-18 with BN, and its state dict."""
    torch.manual_seed(0)
    model = ResNet(18, base_channels=8)
    torch.save(model.state_dict(), tmp_path / 'source.pth')
    return str(tmp_path / 'source.pth'), model.state_dict()


def test_backbone_of_a_config(config, source, tmp_path):
    path, state = source
    detector = config(RETINANET, norm='RBN')
    report = convert_file(path, tmp_path / 'out.pth', 'RBN', config=detector)
    assert report.network == f'the backbone of {detector}' and report.norms == {'BN -> RBN': 20}
    network = build_network(read_config(detector))
    network.backbone.load_state_dict(read_checkpoint(tmp_path / 'out.pth')['state_dict'], strict=True)
    with pytest.raises(ValueError, match='config.py has no SN layers; its norm layers are of kind RBN'):
        convert_file(path, tmp_path / 'other.pth', 'SN', config=detector)
    with pytest.raises(ValueError, match='does not fit .*config.py: missing 80 of 324 tensors; first: layer1.2.conv1'):
        convert_file(
            path, tmp_path / 'other.pth', 'RBN', config=config(RETINANET.replace('depth=18', 'depth=34'), norm='RBN')
        )
    assert not (tmp_path / 'other.pth').exists()


def test_norms_follow_the_config_layer_by_layer(config, source, tmp_path):
    xbn = config(
        RETINANET.replace('depth=18', "type='XBNResNet', xbn=dict(stem=True, position=2, every=2), depth=18"), norm='EN'
    )
    report = convert_file(source[0], tmp_path / 'out.pth', 'XBN', config=xbn)
    assert report.norms == {'BN -> batch-free': 5, 'BN -> EN': 15}
    free = [key for key in source[1] if key not in read_checkpoint(tmp_path / 'out.pth')['state_dict']]
    assert {key.rpartition('.')[0] for key in free} == {'bn1', *(f'layer{i}.1.bn2' for i in (1, 2, 3, 4))}


def test_batch_free_norms_have_to_be_where_the_config_has_them(config, tmp_path):
    source = str(tmp_path / 'source.pth')
    torch.save(XBNResNet(18, base_channels=8, xbn=dict(stem=True)).state_dict(), source)
    placed = RETINANET.replace('depth=18', "type='XBNResNet', xbn=dict({xbn}), depth=18")
    # it fits and is told so, without a backbone to paste
    report = convert_file(source, tmp_path / 'out.pth', 'XBN', config=config(placed, norm='BN', xbn='stem=True'))
    assert report.network.startswith('the backbone of') and 'backbone=' not in report.text()
    assert 'backbone' not in read_checkpoint(tmp_path / 'out.pth')['meta']['mmnorm']
    says = (
        r'batch-free norms are 9 \(bn1, layer1.0.bn1, .*, those of .*config.py \d+ .*; '
        'without --config the xbn=... of SOURCE is printed$'
    )
    for other in ('', 'stem=True, position=2', 'stem=True, every=2', "scope='full'"):
        with pytest.raises(ValueError, match=says):
            convert_file(source, tmp_path / 'no.pth', 'XBN', config=config(placed, norm='BN', xbn=other))


def test_hardened_files_keep_where_their_weights_come_from(config, source, tmp_path):
    sn = config(RETINANET, norm='SN')
    network = build_network(read_config(config(RETINANET, 'bn.py', norm='BN')))
    torch.save(network.state_dict(), tmp_path / 'bn.pth')
    convert_file(str(tmp_path / 'bn.pth'), tmp_path / 'sn.pth', 'SN', config=sn, whole=True)
    hardened = harden_files(sn, str(tmp_path / 'sn.pth'), tmp_path / 'hard.pth')[1]
    note = read_checkpoint(hardened)['meta']['mmnorm']
    assert note['converted_from'] == str(tmp_path / 'bn.pth') and note['licence'] and note['picks']
    report = convert_file(str(hardened), tmp_path / 'back.pth', 'BN', config=tmp_path / 'bn.py', whole=True)
    assert report.origin['through'] == [str(hardened)]


def test_c4_has_the_last_stage_in_its_head(config, tmp_path):
    torch.save(ResNet(18).state_dict(), tmp_path / 'source.pth')
    detector = config(C4)
    report = convert_file(str(tmp_path / 'source.pth'), tmp_path / 'out.pth', 'SN', config=detector)
    assert report.norms == {'BN -> SN': 20}
    network = build_network(read_config(detector))
    weights = read_checkpoint(tmp_path / 'out.pth')['state_dict']
    # as a detector's checkpoint has it, it comes back
    trained = {f'backbone.{key}': value for key, value in network.backbone.state_dict().items()}
    trained.update(
        {f'roi_head.shared_head.{key}': value for key, value in network.roi_head.shared_head.state_dict().items()}
    )
    torch.save(dict(state_dict=trained), tmp_path / 'trained.pth')
    report = convert_file(str(tmp_path / 'trained.pth'), tmp_path / 'back.pth', 'SN', config=detector)
    assert report.layout == 'mmdet' and read_checkpoint(tmp_path / 'back.pth')['state_dict'].keys() == weights.keys()


@torch.no_grad()
def test_whole_network_from_en_to_bn(config, tmp_path):
    torch.manual_seed(0)
    of_en, of_bn = config(RETINANET, norm='EN'), config(RETINANET, 'bn.py', norm='BN')
    network, x = build_network(read_config(of_en)), torch.randn(1, 3, 160, 160)
    network.train()
    with torch.enable_grad():  # without gradients EN does not learn
        network(x)
    network.eval()
    expected = network(x)
    state = network.state_dict()
    torch.save(dict(meta=dict(epoch=12), state_dict=state), tmp_path / 'en.pth')
    with pytest.raises(ValueError, match='config.py has no BN layers'):
        convert_file(str(tmp_path / 'en.pth'), tmp_path / 'bn.pth', 'BN', config=of_en, whole=True)
    report = convert_file(str(tmp_path / 'en.pth'), tmp_path / 'bn.pth', 'BN', config=of_bn, whole=True)
    assert report.norms == {'EN -> BN': 30} and report.missing == []
    # the backbone's 20 were held by norm_eval and have seen no batch
    assert report.notes[0].startswith('alpha and beta of 10 EN layers are not 0 (up to 1)')
    without = build_network(read_config(of_bn))
    without.load_state_dict(read_checkpoint(tmp_path / 'bn.pth')['state_dict'], strict=True)
    without.eval()
    for layer in network.modules():
        if isinstance(layer, EN):
            layer.held = True
    with torch.enable_grad():  # by the running statistics
        held = network(x)
    for ours, theirs, corrected in zip(flat(without(x)), flat(held), flat(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(theirs, corrected)


def flat(outputs):
    return [y for level in outputs for y in level]


def test_deep_stems_of_mmseg(config, source, tmp_path):
    pytest.importorskip('mmseg')
    deep = "type='ResNetV1c', depth=18, base_channels=8, stem_channels=8, norm_cfg=dict(type='SN')"
    with pytest.raises(
        ValueError,
        match='first: stem.0.weight; .*; first: conv1.weight. The stem of the network '
        'has three convolutions, a deep stem, that of the checkpoint one of 7 x 7',
    ):
        convert_file(source[0], tmp_path / 'out.pth', 'SN', config=config(SEGMENTER, backbone=deep))
    flat_stem = config(SEGMENTER, 'flat.py', backbone=deep.replace('V1c', ''))
    convert_file(source[0], tmp_path / 'out.pth', 'SN', config=flat_stem)
    network = build_network(read_config(config(SEGMENTER, backbone=deep)))
    torch.save(network.state_dict(), tmp_path / 'deep.pth')
    report = convert_file(str(tmp_path / 'deep.pth'), tmp_path / 'deep_out.pth', 'SN')
    assert report.network == 'SN ResNet-18 (deep stem, width 8)' and report.layout == 'mmdet'
    with pytest.raises(ValueError, match='network has one of 7 x 7, that of the checkpoint three convolutions'):
        convert_file(str(tmp_path / 'deep.pth'), tmp_path / 'other.pth', 'SN', config=flat_stem)


def test_command_line(forked_tool, source, tmp_path):
    done = forked_tool('convert_checkpoint.py', source[0], 'new/sn.pth', '--to', 'SN', '--bn-share', 0.9)
    assert done.returncode == 0, done.stdout
    # without what is said of hosts that are not there
    lines = [line for line in done.stdout.splitlines() if 'is not installed, left out' not in line]
    assert 'source.pth: layout torchvision, ' in lines[0]
    assert lines[1] == '  fits SN ResNet-18 (width 8), every tensor used; norm layers: 20 BN -> SN'
    assert '  tensors mapped: 120 (conv1.weight, bn1.weight, bn1.bias ...)' in lines
    assert lines[-2:] == [
        "    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, norm_cfg=dict("
        "type='SN'), init_cfg=dict(type='Pretrained', checkpoint='new/sn.pth'))",
        'new/sn.pth',
    ]
    assert (tmp_path / 'new/sn.pth').is_file()


def test_every_name_is_printed_if_asked_for(main, source, tmp_path, capsys):
    assert main([source[0], str(tmp_path / 'rbn.pth'), '--to', 'RBN', '--prefix', 'backbone.', '--verbose']) == 0
    said = capsys.readouterr().out
    assert all(f'    {key} -> backbone.{key}\n' in said for key in source[1])
    assert '    backbone.layer4.1.bn2.scale_bias\n' in said and ' ...' not in said


def test_names_do_nothing_to_a_terminal(main, source, tmp_path, capsys):
    torch.save({**source[1], 'layer1.\x1b[31m': torch.ones(1)}, tmp_path / 'named.pth')
    assert main([str(tmp_path / 'named.pth'), str(tmp_path / 'out.pth'), '--to', 'SN']) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith('error: ') and 'first: layer1.?[31m' in said and '\n' not in said
    assert not (tmp_path / 'out.pth').exists()
