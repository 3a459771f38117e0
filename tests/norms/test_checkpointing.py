"""Activation checkpointing, reentrant and not: everything is as without it, over the registry and for stock BN."""

import copy
import pickle

import pytest
import torch
from mmdet.models.backbones import ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmnorm import compile_norms, update_statistics_once
from mmnorm.norms import BRN, EN, passes

from .cases import CHANNELS, build, randomized

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


class Network(nn.Module):
    """Two regions that may be checkpointed; one norm is in both of them, and twice in the second."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.other = norm, copy.deepcopy(norm)
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(0.1)
        self.reentrant = None  # not checkpointed

    def first(self, x):
        return self.norm(self.convs[0](x)).relu()

    def second(self, x):
        x = self.dropout(self.norm(self.convs[1](x))).relu()
        return self.other(self.convs[3](self.norm(self.convs[2](x)).relu()))

    def forward(self, x):
        for region in (self.first, self.second):
            x = region(x) if self.reentrant is None else checkpoint(region, x, use_reentrant=self.reentrant)
        return x


def pair(norm, reentrant):
    """The same network without and with checkpointing."""
    torch.manual_seed(0)
    plain = Network(norm).double()
    saving = copy.deepcopy(plain)
    saving.reentrant = reentrant
    return plain, saving


def train(model, together, steps=4):
    """Steps of two micro-batches, whose backward passes come together or one after the other; all that came of it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    outputs = []
    for step in range(steps):
        torch.manual_seed(step)
        sizes = (4, 3) if step else (4, 4)
        inputs = [(torch.randn(size, CHANNELS, 4, 5) + size).double().requires_grad_() for size in sizes]
        if step == 2:
            inputs[1] = inputs[0].detach().clone().requires_grad_()  # the same batch again
        optimizer.zero_grad()
        losses = []
        for x in inputs:
            y = model(x)
            outputs.append(y.detach())
            losses.append((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum())
            if not together:
                losses.pop().backward()
        if together:
            sum(losses).backward()
        outputs += [x.grad for x in inputs] + [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return outputs


def assert_alike(plain, saving, together=True):
    torch.testing.assert_close(train(saving, together), train(plain, together))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(saving.state_dict()[key], value, msg=key)


@pytest.mark.parametrize('together', [True, False])
@pytest.mark.parametrize('reentrant', [True, False])
def test_training_is_that_without(cfg, reentrant, together):
    norm = randomized(build(cfg))
    if cfg['type'] == 'BRN':
        norm.num_batches_tracked.fill_(2500)  # half of its warm-up: r and d count
    assert_alike(*pair(norm, reentrant), together)


@pytest.mark.parametrize('name', ['SN', 'EN', 'BRN'])  # each takes another way through the recomputation
def test_compiled_layers_update_once(name):
    torch._dynamo.reset()
    plain = randomized(build(dict(type=name))).double()
    compiled = [copy.deepcopy(plain) for _ in range(2)]
    for layer, reentrant in zip(compiled, (True, False)):
        compile_norms(layer, backend='aot_eager')
        for step in range(2):
            x = torch.randn(4, CHANNELS, 4, 5, generator=torch.manual_seed(step), dtype=torch.float64).requires_grad_()
            checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
            if reentrant:
                plain(x)
    for layer in compiled:
        assert layer.num_batches_tracked == 2
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[key], value, msg=key)


STOCK = [
    nn.BatchNorm2d,
    lambda c: nn.BatchNorm2d(c, momentum=None),
    lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
]


@pytest.mark.parametrize('norm', STOCK)
@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize(
    'copied', [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_stock_norms_by_one_call(norm, reentrant, copied):
    plain, saving = pair(norm(CHANNELS), reentrant)
    assert update_statistics_once(saving) == update_statistics_once(saving) == ['norm', 'other']
    assert len(saving.norm._forward_hooks) == 1
    assert_alike(plain, copied(saving))


def test_stock_norms_without_it_update_twice():
    plain, saving = pair(nn.BatchNorm2d(CHANNELS), False)
    train(plain, True)
    train(saving, True)
    assert saving.other.num_batches_tracked == 2 * plain.other.num_batches_tracked


@pytest.mark.parametrize('name', ['BN', 'EN', 'BRN', 'SN'])
@pytest.mark.parametrize('reentrant', [True, False])
def test_a_real_backbone(name, reentrant, monkeypatch):
    from torch.utils import checkpoint as module

    torch.manual_seed(0)
    models = [
        ResNet(
            50, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), norm_eval=False,
            norm_cfg=dict(type=name), with_cp=with_cp,
        ).double()
        for with_cp in (False, True)
    ]  # fmt: skip
    models[1].load_state_dict(models[0].state_dict())
    held = update_statistics_once(models[1])
    assert len(held) == (name == 'BN') * len([m for m in models[1].modules() if isinstance(m, nn.BatchNorm2d)])
    original = module.checkpoint
    called = []

    def chosen(*args, **kwargs):
        called.append(args)
        return original(*args, **dict(kwargs, use_reentrant=reentrant))

    monkeypatch.setattr(module, 'checkpoint', chosen)
    for seed in range(2):
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for model in models:
            model.zero_grad()
            sum(out.square().mean() for out in model(x)).backward()
    assert called
    for (key, p), q in zip(models[0].named_parameters(), models[1].parameters()):
        torch.testing.assert_close(q.grad, p.grad, msg=key)
    for key, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[key], value, msg=key)


@pytest.mark.parametrize('reentrant', [True, False])
def test_norm_eval_is_that_without(reentrant):
    """Reentrant checkpointing has gradients disabled in its first pass, as an evaluation has."""
    layer = randomized(EN(CHANNELS, batch_size=2)).train().eval()
    x = torch.randn(2, CHANNELS, 4, 5, requires_grad=True)
    y = layer(x)
    assert torch.equal(checkpoint(layer, x, use_reentrant=reentrant), y)


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_region_is_computed_twice_and_no_more(cfg, reentrant):
    model, saving = pair(randomized(build(cfg)), reentrant)
    calls = []
    saving.convs[3].register_forward_pre_hook(lambda *_: calls.append(1))
    saving(torch.randn(4, CHANNELS, 4, 5).double().requires_grad_()).square().sum().backward()
    assert len(calls) == 2


def test_a_batch_that_no_first_pass_had_is_an_error():
    layer, noise = BRN(CHANNELS), nn.Dropout(0.5)
    x = torch.randn(4, CHANNELS, 4, 5, requires_grad=True)
    y = checkpoint(lambda x: layer(noise(x)) ** 2, x, use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match=r'BRN\(8.* a batch that none of its last 1 checkpointed calls had'):
        y.sum().backward()


def test_nothing_is_kept_where_nothing_is_checkpointed():
    layer, x = BRN(CHANNELS), torch.randn(4, CHANNELS, 4, 5, requires_grad=True)
    for _ in range(3):
        layer(x).sum().backward()
    assert layer not in passes._first_passes
    for _ in range(passes._MOST_CALLS + 5):
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert len(passes._first_passes[layer]) == passes._MOST_CALLS
    assert copy.deepcopy(layer) not in passes._first_passes
