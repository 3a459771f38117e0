import pytest
import torch

from mmnorm.core import pool

PLANE = torch.randn(4, 6, 3), torch.rand(4, 6, 3)


@pytest.mark.parametrize('dims', [0, 1, (0, 2), (0, 1, 2)])
def test_pool_is_the_statistics_of_all_elements(dims):
    x = torch.randn(4, 6, 3, 50, dtype=torch.float64) * 3 + 1
    var, mean = torch.var_mean(x, dim=(*(dims if isinstance(dims, tuple) else (dims,)), 3), correction=0)
    our_mean, our_var = pool(x.mean(3), x.var(3, correction=0), dims)
    torch.testing.assert_close(our_mean.flatten(), mean.flatten())
    torch.testing.assert_close(our_var.flatten(), var.flatten())


@pytest.mark.parametrize('dims', [0, 1, (0, 2)])
def test_gradcheck(dims):
    plane = [p.double().requires_grad_() for p in PLANE]
    assert torch.autograd.gradcheck(lambda mean, var: pool(mean, var, dims), plane)


def test_compiled_equals_eager():
    compiled = torch.compile(lambda mean, var: pool(mean, var, 0), backend='eager', fullgraph=True)
    for ours, theirs in zip(compiled(*PLANE), pool(*PLANE, 0)):
        torch.testing.assert_close(ours, theirs)
