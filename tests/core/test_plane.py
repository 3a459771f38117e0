import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmnorm.core import like, moments, normalize


def own_statistics(mean, var, count):
    return mean, var, torch.ones_like(mean), torch.zeros_like(mean)


def instance_norm(x, eps=1e-3):
    return normalize(x, own_statistics, eps)


@pytest.mark.parametrize('shape', [(3, 2, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4), (3, 4)])
def test_gradcheck_of_x_and_of_all_that_statistics_return(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight, bias, shared = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape[:2], (shape[1],), (1, shape[1]))
    )

    def layer(x, weight, bias, shared):
        return normalize(
            x, lambda m, v, _: (0.5 * m + shared, v + shared.square(), weight, bias), 1e-3, (weight, bias, shared)
        )

    assert torch.autograd.gradcheck(layer, (x, weight, bias, shared))
    assert torch.autograd.gradcheck(lambda x: layer(x, weight.detach(), bias.detach(), shared.detach()), x)


@pytest.mark.parametrize('shape', [(), (1,), (1, 1), (3,), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize('constant', [False, True])
def test_whatever_statistics_return_broadcasts(shape, constant):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    mean, weight, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=not constant) for _ in range(3))
    parameters = () if constant else (mean, weight, bias)

    def layer(x, *parameters):
        return normalize(x, lambda m, v, _: (mean, v + m.square(), weight, bias), 1e-3, parameters)

    assert torch.autograd.gradcheck(layer, (x, *parameters))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer(x.clone().requires_grad_()))


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 4),
    c=st.integers(1, 5),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    offset=st.sampled_from([0, 1, 100]),
    channels_last=st.booleans(),
    dtype=st.sampled_from(['float32', 'float64']),
)
def test_moments_and_result_match_torch(n, c, h, w, offset, channels_last, dtype):
    x = (torch.randn(n, c, h, w) + offset).to(getattr(torch, dtype))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    var, mean = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    our_mean, our_var = moments(x)
    torch.testing.assert_close(our_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_var.double(), var, rtol=1e-4, atol=1e-5)
    y = normalize(x, lambda mean, var, count: (mean + 2, var + 1, 3 * torch.ones_like(mean), mean), 0.5)
    mean, var = mean[..., None, None], var[..., None, None]
    expected = 3 * (x.double() - mean - 2) / (var + 1.5).sqrt() + mean
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4 * max(1, offset / 10))
    assert y.stride() == torch.empty_like(x).stride()
    assert torch.equal(x, before)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_takes_statistics_in_float32_and_rounds_once(dtype):
    x = (torch.randn(2, 4, 32, 32) * 0.1 + 10).to(dtype).requires_grad_()
    mean, var = moments(x)
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(var, x.detach().float().var(dim=(2, 3), correction=0), rtol=1e-3, atol=1e-6)
    y = instance_norm(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    exact = F.instance_norm(x.detach().double(), eps=1e-3)
    torch.testing.assert_close(y.detach().double(), exact, rtol=torch.finfo(dtype).eps, atol=2e-3)


def test_large_mean_costs_no_precision():
    x = torch.randn(2, 3, 50, 50) + 100
    torch.testing.assert_close(instance_norm(x).double(), F.instance_norm(x.double(), eps=1e-3), rtol=1e-4, atol=1e-4)


def test_constant_channels_have_finite_gradients():
    x = torch.full((2, 3, 8, 8), 7.0, requires_grad=True)
    y = instance_norm(x)
    y.backward(torch.randn_like(y))
    assert y.abs().max() < 1e-3
    assert x.grad.isfinite().all() and x.grad.abs().max() < 1e3


@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_input_gives_an_empty_result_and_gradient(shape):
    x = torch.randn(shape, requires_grad=True)
    y = instance_norm(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


def test_backward_twice_through_one_forward():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y, grad = instance_norm(x), torch.randn(2, 3, 4, 4)
    (first,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, grad)
    assert torch.equal(first, second)


def test_nothing_outlives_the_result():
    """The two functions share plane-sized tensors; that must not make a cycle that keeps x alive."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        hidden = x * 2
        watched = weakref.ref(hidden)
        y = instance_norm(hidden)
        y.sum().backward()
        del hidden, y
        assert watched() is None
    finally:
        gc.enable()


def test_compiled_equals_eager():
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(instance_norm, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), F.instance_norm(x, eps=1e-3))


def test_like_restores_shape_and_memory_format():
    x = torch.randn(2, 3, 4, 5)
    for layout in (torch.contiguous_format, torch.channels_last):
        source = x.contiguous(memory_format=layout)
        y = like(x.flatten(2), source)
        assert torch.equal(y, x) and y.is_contiguous(memory_format=layout)
