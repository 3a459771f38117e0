"""Files of earlier versions: state dicts load as they are, and layers compute what they computed.

Those of layers that are marked since then lack the mark.
"""

from pathlib import Path

import pytest
import torch

from .cases import build

# Of every norm and variant: the state dict at the start, results on the input below and the state dict after. Written
# by the last commit before the layers moved into files that need torch alone.
WRITTEN = torch.load(Path(__file__).with_name('layers_of_0_1.pth'), weights_only=True)
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


@pytest.mark.parametrize('name', WRITTEN)
def test_layer_of_an_earlier_version_computes_the_same(name):
    written = WRITTEN[name]
    torch.manual_seed(0)
    layer = build(written['cfg'])
    own = [key for key in layer.state_dict() if key not in layer.marks()]
    for key in own:  # the file's names and shapes, in the file's order
        assert layer.state_dict()[key].shape == written['state'][key].shape
    assert own == list(written['state'])
    layer.load_state_dict(written['state'], strict=True)
    expected_y, expected_dx, expected_evaluation = written['results'].view(3, 2, 8, 3, 4)
    x = written['x'].clone().requires_grad_()
    y = layer.train()(x)
    (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad, expected_dx, rtol=1e-3, atol=1e-4)
    for key, value in written['after'].items():
        torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected_evaluation, rtol=1e-4, atol=1e-5)
