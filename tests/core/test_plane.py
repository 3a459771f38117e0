import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmnorm.core import affine, moments, normalize


def instance_norm(mean, var, count):
    rstd = torch.rsqrt(var + 1e-3)
    return rstd, -mean * rstd


@pytest.mark.parametrize('shape', [(3, 2, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_gradcheck(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: normalize(x, instance_norm), x)


def test_each_operation_has_its_own_right_gradient():
    x, scale, shift = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (2, 3), (2, 3)))
    assert torch.autograd.gradcheck(lambda x: moments(x), x)
    assert torch.autograd.gradcheck(affine, (x, scale, shift))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 4), c=st.integers(1, 5), h=st.integers(1, 9), w=st.integers(1, 9),
       offset=st.sampled_from([0, 1, 100]), channels_last=st.booleans())
def test_moments_and_result_match_torch(n, c, h, w, offset, channels_last):
    x = torch.randn(n, c, h, w) + offset
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    var, mean = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    _, our_mean, our_var = moments(x)
    torch.testing.assert_close(our_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_var.double(), var, rtol=1e-4, atol=1e-5)
    y = normalize(x, lambda mean, var, count: (mean + 2, var - 1))
    expected = (mean + 2)[..., None, None] * x + (var - 1)[..., None, None]
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-2 if offset == 100 else 1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(x, before)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_takes_statistics_in_float32(dtype):
    x = (torch.randn(2, 4, 32, 32) * 0.1 + 10).to(dtype).requires_grad_()
    _, mean, var = moments(x)
    assert mean.dtype == var.dtype == torch.float32
    expected = torch.var(x.detach().float(), dim=(2, 3), correction=0)
    torch.testing.assert_close(var, expected, rtol=1e-3, atol=1e-6)
    y = normalize(x, instance_norm)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype


def test_constant_channels_have_finite_gradients():
    x = torch.full((2, 3, 8, 8), 7., requires_grad=True)
    y = normalize(x, instance_norm)
    y.backward(torch.randn_like(y))
    assert y.abs().max() < 1e-3
    assert x.grad.isfinite().all() and x.grad.abs().max() < 1e3


@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_input_gives_an_empty_result_and_gradient(shape):
    x = torch.randn(shape, requires_grad=True)
    y = normalize(x, instance_norm)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_compiled_equals_eager():
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(lambda x: normalize(x, instance_norm), backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), F.instance_norm(x, eps=1e-3))
