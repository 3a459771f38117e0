import pytest
import torch

from mmnorm.norms import BRN


def limits(layer):
    return tuple(float(limit) for limit in layer._renorm().limits())


def test_the_warm_up_goes_on_after_a_recollection_of_statistics():
    layer = BRN(4, warmup=100)
    batches = [torch.randn(8, 4, 3, 3) + i for i in range(50)]
    for batch in batches:
        layer(batch)
    assert limits(layer) == pytest.approx((1.5, 0.5))
    torch.optim.swa_utils.update_bn(batches[:5], layer)
    torch.testing.assert_close(layer.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches[:5]]).mean(0))
    assert limits(layer) == pytest.approx((1.55, 0.55))
    other = BRN(4, warmup=100)
    other.load_state_dict(layer.state_dict())
    assert limits(other) == pytest.approx((1.55, 0.55))
    layer.reset_parameters()
    assert limits(layer) == (1, 0)


def test_right_after_a_reset_it_is_bn():
    layer, bn, x = BRN(4, warmup=0), torch.nn.BatchNorm2d(4), torch.randn(8, 4, 3, 3) + 5
    layer(x)
    layer.reset_running_stats()
    torch.testing.assert_close(layer(x), bn(x))
