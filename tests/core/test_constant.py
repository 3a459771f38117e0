import pytest
import torch
from torch.nn import functional as F

from mmnorm.core import constant_affine


def constants(dtype=torch.float32):
    mean, weight, bias = (torch.randn(6, dtype=dtype) for _ in range(3))
    return mean, torch.rand(6, dtype=dtype) + 0.5, weight, bias


@pytest.mark.parametrize('shape', [(4, 6, 5, 3), (0, 6, 5, 3), (4, 6), (2, 6, 3, 2, 2)])
@pytest.mark.parametrize('affine', [True, False])
def test_equals_batch_norm(shape, affine):
    mean, var, *learned = constants()
    learned = learned if affine else (None, None)
    x = torch.randn(shape, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, expected = constant_affine(x, mean, var, *learned, 1e-3), F.batch_norm(twin, mean, var, *learned, eps=1e-3)
    grad = torch.randn(shape)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_types_and_memory_format_stay(dtype):
    x = torch.randn(2, 6, 4, 4).to(dtype, memory_format=torch.channels_last).requires_grad_()
    y = constant_affine(x, *constants(), 1e-5)
    y.backward(torch.ones_like(y))
    assert y.dtype == x.grad.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_derivatives_of_the_gradient():
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    affine = constants(torch.float64)
    assert torch.autograd.gradcheck(lambda x: constant_affine(x, *affine, 1e-5), x)
    assert torch.autograd.gradgradcheck(lambda x: constant_affine(x.square(), *affine, 1e-5), x)


def test_statistics_may_move_on_before_the_backward_pass():
    mean, var, weight, bias = constants()
    x = torch.randn(2, 6, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(constant_affine(x, mean, var, weight, bias, 1e-5).sum(), x)
    y = constant_affine(x, mean, var, weight, bias, 1e-5)
    mean.add_(1), var.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected, rtol=0, atol=0)


def test_keeps_no_activation():
    kept = []
    x = torch.randn(4, 6, 32, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        constant_affine(x, *constants(), 1e-5)
    assert max(kept) == 6
