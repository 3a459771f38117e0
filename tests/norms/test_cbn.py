"""CBN in small networks that train; over the registry it is alone and so BN."""

import copy
import pickle

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmnorm.norms import CBN, PerLevel, count_levels, count_steps

from .cases import CHANNELS, randomized
from .runners import runner

BATCHES = [torch.randn(4, 3, 6, 5, generator=torch.manual_seed(i), dtype=torch.float64) + i / 5 for i in range(7)]


def network(norm, bias=False, groups=1):
    torch.manual_seed(1)
    conv = nn.Conv2d(3, CHANNELS * 3, 3, groups=3, bias=bias) if groups > 1 else nn.Conv2d(3, CHANNELS, 3, bias=bias)
    return nn.Sequential(conv, norm).double()


def spelled_out(weights, batches, window, eps, at, conv):
    """The paper's equations on the elements: mean and mean square of the batches, each with the weights of its step.

    Args:
        weights (list[dict]): The convolution's parameters in each step.
        at (int): The step.
    """

    def moments(step, parameters):
        x = torch.func.functional_call(conv, parameters, batches[step])
        return torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])

    now, carried = weights[at], []
    for step in range(max(0, at - window + 1), at):
        then = weights[step]
        change = {name: now[name].detach() - then[name].detach() for name in now}
        then = {name: value.detach() for name, value in then.items()}
        value, along = torch.func.jvp(lambda parameters, step=step: moments(step, parameters), (then,), (change,))
        carried.append(value + along)
    own = moments(at, now)
    means, squares = (torch.stack([own[i], *(c[i].detach() for c in carried)]) for i in range(2))
    mean, square = means.mean(0), torch.maximum(squares, means.square()).mean(0)
    x = torch.func.functional_call(conv, now, batches[at])
    return (x - mean[:, None, None]) / (square - mean.square() + eps)[:, None, None].sqrt()


@pytest.mark.parametrize('bias, groups', [(False, 1), (True, 1), (False, 3)])
@pytest.mark.parametrize('window', [1, 3, 4])
def test_equals_the_papers_equations_forward_and_backward_over_steps(window, bias, groups):
    """The authors' code (github.com/Howal/Cross-iterationBatchNorm, mmdet/models/utils/CBN.py, out_p=True) was run
    beside CBN once, window 4, over 8 steps of SGD from the same tensors, batches of (4, 3, 8, 7): results, gradients
    and running statistics differ by at most 9e-16 of the largest in float64, and by 5e-7 in float32, at a learning rate
    of 1e-4. At 1e-3, where the variances of some channels are carried below 0, theirs leaves such a batch out of a
    channel's mean, which the paper's equations do not, and the difference is up to 0.38.
    """
    channels = CHANNELS * groups
    model = network(randomized(CBN(channels, window=window)), bias, groups)
    conv, norm = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    count_steps(model, optimizer)
    weights = []
    for step, x in enumerate(BATCHES):
        now = {name: p.detach().clone().requires_grad_() for name, p in conv.named_parameters()}
        weights.append(now)
        expected = spelled_out(weights, BATCHES, window, norm.eps, step, conv)
        expected = expected * norm.weight.detach()[:, None, None] + norm.bias.detach()[:, None, None]
        y = model(x)
        torch.testing.assert_close(y, expected)
        grad = torch.randn_like(y)
        y.backward(grad)
        for ours, theirs in zip(conv.parameters(), torch.autograd.grad(expected, list(now.values()), grad)):
            torch.testing.assert_close(ours.grad, theirs)
        optimizer.step()
        optimizer.zero_grad()


def pair(norm=None, lr=0.05):
    """A network with CBN, whose steps are counted, its optimizer, and the same network with BN."""
    model = network(norm or CBN(CHANNELS, affine=False))
    bn = nn.Sequential(model[0], nn.BatchNorm2d(CHANNELS, affine=False).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    count_steps(model, optimizer)
    return model, optimizer, bn


def step(model, optimizer, *batches):
    """A step that accumulates the gradients of several batches."""
    for x in batches:
        model(x).cos().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def bn_in_steps(model, optimizer, bn, batches=BATCHES[:3]):
    """Train for a step by each batch: whether the model computed what it does with BN."""
    found = []
    for x in batches:
        y = model(x)
        found.append(torch.allclose(y, bn(x)))
        y.cos().sum().backward()
        optimizer.step()
    return found


def test_the_burn_in_is_counted_in_steps_of_the_optimizer():
    model, optimizer, bn = pair(CBN(CHANNELS, affine=False, burnin=2))
    model(BATCHES[0]).sum().backward()  # and no step, as a scaler of mixed precision leaves one out
    assert bn_in_steps(model, optimizer, bn, BATCHES[:5]) == [True, True, True, False, False]
    assert model[1].steps == 5


def test_of_the_batches_that_a_step_accumulates_the_last_one_is_kept():
    model, optimizer, bn = pair(lr=0.0)  # nothing to carry: the window is a batch of all its images
    step(model, optimizer, *BATCHES[:2])
    step(model, optimizer, *BATCHES[2:4])
    for x in BATCHES[4:6]:
        found = model(x)
        torch.testing.assert_close(found, bn(torch.cat([BATCHES[1], BATCHES[3], x]))[-len(x) :])
        found.sum().backward()


def test_without_a_count_it_is_bn_and_says_so():
    model, optimizer, bn = pair()
    model[1].counted = False
    with pytest.warns(UserWarning, match=r'^CBN: nothing counts the steps .* mmnorm.count_steps\(model, optimizer\)'):
        assert all(bn_in_steps(model, optimizer, bn))


class OfWeights(nn.Conv2d):
    """A convolution of computed weights."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    'before',
    [
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, CHANNELS, 3).requires_grad_(False)),
        OfWeights(3, CHANNELS, 3),
        nn.ConvTranspose2d(3, CHANNELS, 3),
        nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.ReLU()),
    ],
)
def test_behind_anything_but_a_convolution_that_trains_it_is_bn_and_named(before):
    model, _, bn = pair()
    model[0] = bn[0] = before.double()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1)), *model.parameters()], lr=0.05)
    count_steps(model, optimizer)
    with pytest.warns(UserWarning, match='^CBN 1 is BN: its input is not that of a convolution with weights that') as w:
        assert all(bn_in_steps(model, optimizer, bn))
    assert len(w) == 1


def test_a_layer_that_levels_share_is_bn_and_named_unless_each_has_a_window():
    model, optimizer, bn = pair()
    with pytest.warns(
        UserWarning, match='^CBN 1 is called again before the backward pass .* per_level in its norm_cfg'
    ):
        for first, second in zip(BATCHES, BATCHES[1:]):
            found = [model(x) for x in (first, second)]
            torch.testing.assert_close(found, [bn(x) for x in (first, second)])
            sum(found).cos().sum().backward()
            optimizer.step()
    levels = PerLevel.build(lambda: CBN(CHANNELS), 2)
    other, of_other, _ = pair(copy.deepcopy(levels[1]), lr=0.0)
    model, optimizer, _ = pair(levels, lr=0.0)
    twice = Twice(model)
    count_levels(twice)
    for first, second in zip(BATCHES, BATCHES[1:]):
        found = twice(first, second)
        expected = other(second)
        torch.testing.assert_close(found[1], expected)
        (sum(found) + expected).sum().backward()
        for taken in (optimizer, of_other):
            taken.step()


class Twice(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.conv, self.norm = model

    def forward(self, *levels):
        return [self.norm(self.conv(x)) for x in levels]


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_is_refused(reentrant):
    model, _, _ = pair()
    with pytest.raises(RuntimeError, match='CBN 1 is in activation checkpointing, .*with_cp=False'):
        checkpoint(model, BATCHES[0].clone().requires_grad_(), use_reentrant=reentrant)
    model.eval()
    checkpoint(model, BATCHES[0].clone().requires_grad_(), use_reentrant=reentrant).sum().backward()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_in_half_precision_the_weights_of_float32_carry_the_statistics(dtype):
    """Steps that half precision could not tell apart."""
    model, optimizer, _ = pair(lr=1e-5)
    half, of_half, bn = (part.float() if isinstance(part, nn.Module) else part for part in pair(lr=1e-5))
    for x in BATCHES:
        x = 4 * x  # gradients are as large as those of a loss that a scaler multiplies
        expected = model(x)
        with torch.autocast('cpu', dtype=dtype):
            found, without = half(x.float()), bn(x.float())
        for y, by in ((expected, optimizer), (found, of_half)):
            y.cos().sum().backward()
            by.step()
    error, effect = ((y.double() - expected).abs().max() for y in (found, without))
    assert error < 8 * torch.finfo(dtype).eps * expected.abs().max() < effect / 4


def test_the_count_is_kept_in_files_and_the_batches_are_collected_anew():
    model, optimizer, bn = pair(CBN(CHANNELS, affine=False, burnin=2))
    bn_in_steps(model, optimizer, bn, BATCHES[:4])
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        network(CBN(CHANNELS, affine=False, burnin=2)),
    ):
        copied.load_state_dict(model.state_dict(), strict=True)
        again = nn.Sequential(copied[0], bn[1])
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.05)
        count_steps(copied, optimizer)
        assert bn_in_steps(copied, optimizer, again, BATCHES[4:6]) == [True, False]
        assert copied[1].steps == 6
    restarted, optimizer, bn = pair()
    bn_in_steps(restarted, optimizer, bn)
    restarted.float().double()
    assert bn_in_steps(restarted, optimizer, bn) == [True, False, False]


def test_a_network_that_is_compiled_as_a_whole_trains_as_without(recwarn):
    torch._dynamo.reset()
    model, optimizer, _ = pair()
    other, of_other, _ = pair()
    compiled = torch.compile(other, backend='aot_eager')
    for x in BATCHES[:4]:
        found = model(x), compiled(x)
        torch.testing.assert_close(*found)
        sum(found).cos().sum().backward()
        optimizer.step()
        of_other.step()
    assert not [warning for warning in recwarn if 'CBN' in str(warning.message)]


# in the hosts


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, CHANNELS, 1), CBN(CHANNELS, burnin=1)
        self.frozen = CBN(CHANNELS, frozen=True)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.frozen(self.norm(self.conv(inputs))).sin().mean())


@pytest.mark.parametrize('accumulated, steps', [(1, 5), (2, 3)])
def test_a_runner_counts_the_steps_by_itself_and_goes_on_after_a_resume(tmp_path, accumulated, steps):
    arguments = dict(optim_wrapper=dict(accumulative_counts=accumulated))
    run = runner(tmp_path, Model(), 5, **arguments)
    run.train()
    assert run.model.norm.steps == steps and run.model.frozen.steps == 0
    assert sum(type(hook).__name__ == 'CountStepsHook' for hook in run.hooks) == 1
    resumed = runner(tmp_path, Model(), 8, load_from=str(tmp_path / 'iter_4.pth'), resume=True, **arguments)
    resumed.train()
    assert resumed.model.norm.steps == 4 / accumulated + 4 / accumulated


def test_one_key_of_a_config_suffices_in_a_backbone_and_a_neck(recwarn):
    norm_cfg = dict(type='CBN', requires_grad=True)
    backbone = MODELS.build(dict(type='ResNet', depth=18, base_channels=8, norm_cfg=norm_cfg, norm_eval=False))
    neck = MODELS.build(dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4, norm_cfg=norm_cfg))
    model = nn.Sequential(backbone, neck)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    count_steps(model, optimizer)
    norms = [layer for layer in model.modules() if isinstance(layer, CBN)]
    for _ in range(3):
        sum(level.square().mean() for level in model(torch.randn(2, 3, 64, 64))).backward()
        optimizer.step()
    assert len(norms) == 20 + 8 and all(len(norm.history.begin(norm.steps)) == 3 for norm in norms)
    assert not [warning for warning in recwarn if 'CBN' in str(warning.message)]
