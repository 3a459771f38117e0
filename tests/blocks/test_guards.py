import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx, prepare_qat_fx
from torch.fx.experimental import optimization
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from mmnorm.norms import BatchFreeNorm, PlaneNorm

from ..norms.cases import EVERY, build, described, randomized

pytestmark = [
    pytest.mark.filterwarnings('ignore:.*(torch.ao.quantization|torch.jit.trace).* is deprecated:DeprecationWarning')
]
over_all = pytest.mark.parametrize('cfg', EVERY, ids=described)


def network(cfg):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), randomized(build(cfg)), nn.ReLU()).eval()


@over_all
@torch.no_grad()
@pytest.mark.parametrize('fuse', [fuse_conv_bn_eval, nn.utils.fusion.fuse_conv_bn_eval, optimization.fuse_conv_bn_eval])
def test_torchs_fold_is_right_or_refused(cfg, fuse):
    model, x = network(cfg), torch.randn(2, 3, 9, 9)
    conv, norm = model[:2]
    if getattr(norm, 'is_bn_in_evaluation', False) and norm.running_mean is not None:
        torch.testing.assert_close(fuse(bn=norm, conv=conv)(x), norm(conv(x)), rtol=1e-4, atol=1e-4)
        return
    with pytest.raises(ValueError, match=f'fuse_conv_bn_eval: {type(norm).__name__} is not the same affine'):
        fuse(conv, norm)


@over_all
@torch.no_grad()
def test_torchs_fold_into_a_linear_layer_is_right_or_refused(cfg):
    norm, linear, x = randomized(build(cfg)).eval(), nn.Linear(4, 8).eval(), torch.randn(5, 4)
    if getattr(norm, 'is_bn_in_evaluation', False) and norm.running_mean is not None:
        torch.testing.assert_close(fuse_linear_bn_eval(linear, norm)(x), norm(linear(x)), rtol=1e-4, atol=1e-4)
        return
    with pytest.raises(ValueError, match=f'fuse_linear_bn_eval: {type(norm).__name__} is not the same affine'):
        fuse_linear_bn_eval(linear, norm)


def test_torchs_fold_of_bn_is_torchs():
    conv, bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    with pytest.raises(AssertionError, match='Fusion only for eval'):
        fuse_conv_bn_eval(conv, bn)
    fused = fuse_conv_bn_eval(conv.eval(), bn.eval())
    assert torch.equal(fused.weight, fuse_conv_bn_eval.__wrapped__(conv, bn).weight)


@over_all
@torch.no_grad()
def test_every_norm_is_a_leaf_of_fx(cfg):
    model, x = network(cfg), torch.randn(2, 3, 9, 9)
    expected = model(x)
    traced = torch.fx.symbolic_trace(model)
    assert type(traced.get_submodule('1')) is type(model[1]) and torch.equal(traced(x), expected)
    assert torch.equal(optimization.fuse(model)(x), expected)  # folds BNs by their exact class


@over_all
@pytest.mark.parametrize('train', [False, True])
def test_quantization_keeps_every_norm(cfg, train):
    model, x = network(cfg).train(train), torch.randn(4, 3, 9, 9)
    prepared = (prepare_qat_fx if train else prepare_fx)(model, get_default_qat_qconfig_mapping(), (x,))
    kinds = [type(m) for m in prepared.modules() if isinstance(m, (PlaneNorm, BatchFreeNorm))]
    assert kinds == [type(model[1])]
    prepared(x).sum().backward()
    with pytest.raises((AssertionError, NotImplementedError), match='fuse'):
        (fuse_modules_qat if train else fuse_modules)(copy.deepcopy(model), ['0', '1'])


@over_all
def test_jit_script_names_what_works(cfg):
    model, x = network(cfg), torch.randn(2, 3, 9, 9)
    with pytest.raises(NotImplementedError, match=rf'cannot compile {type(model[1]).__name__}; torch.jit.trace'):
        torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


def test_sync_conversion_with_torch_alone(tool, tmp_path):
    script = tmp_path / 'torch_alone.py'
    script.write_text(
        'import sys\n'
        'sys.modules["mmengine"] = None\n'
        'import mmnorm\n'
        'from torch import nn\n'
        'model = nn.Sequential(mmnorm.SN(4), mmnorm.IBN(4), nn.BatchNorm2d(4))\n'
        'model = nn.SyncBatchNorm.convert_sync_batchnorm(model)\n'
        'print([type(m).__name__ for m in model])\n'
    )
    assert "['SyncSN', 'IBN', 'SyncBatchNorm']" in tool(str(script)).stdout
