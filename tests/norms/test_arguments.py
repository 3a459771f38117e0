"""Arguments over the registry: each is as documented or refused, where the layer is built, by its name."""

import ast
import inspect
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mmnorm
from mmnorm.norms import NORMS
from mmnorm.norms.arguments import FLAG, Allowed, checked, integer, known_arguments, number

from .cases import CHANNELS, build, randomized, seeded

pytestmark = pytest.mark.filterwarnings('ignore:.* has no effect:UserWarning')
SHAPE = (4, CHANNELS, 4, 6)
NO_NUMBER = ['8', '1e-5', None, [], {}, (1,), True, 1j, torch.tensor(1.0), object()]
NO_INTEGER = [*NO_NUMBER, 2.5, math.nan]
NO_FLAG = [-1, 0, 1, 2.5, math.nan, 'True', None, []]
NO_WORD = [-1, 0, 2.5, True, None, [], 'other', '']
#: What no argument of that name may be. An argument that a new norm brings has to be put here.
BAD = dict(
    num_features=[*NO_INTEGER, -1, 0],
    eps=[*NO_NUMBER, -1, -1e-9, math.nan, math.inf],
    momentum=[*(v for v in NO_NUMBER if v is not None), -0.1, 1.1, 2, math.nan, math.inf],
    affine=NO_FLAG,
    track_running_stats=NO_FLAG,
    device=[-1, 2.5, True, 'nowhere', []],
    dtype=['float32', 32, True, torch.int64, torch.complex64],
    bias=NO_FLAG,
    frozen=NO_FLAG,
    per_level=[*(v for v in NO_INTEGER if v is not None), -1, 0],
    held=[v for v in NO_FLAG if v is not None],
    process_group=[1, 2.5, True, 'nodes', [0, 1]],
    group_size=[*(v for v in NO_INTEGER if v is not None), -1, 0],
    groups=[*NO_INTEGER, -1, 0, 3],
    batch_stat=NO_FLAG,
    hard=NO_FLAG,
    unbiased=NO_FLAG,
    single_value=NO_WORD,
    bn_share=[*(v for v in NO_NUMBER if v is not None), -0.1, 0, 1.1, math.nan],
    center_stat=NO_WORD,
    scale_stat=NO_WORD,
    center=NO_FLAG,
    scale=NO_FLAG,
    fold_bn=NO_FLAG,
    mode=NO_WORD,
    batch_size=[*(v for v in NO_INTEGER if v is not None), -1, 0],
    virtual_batch_size=[*(v for v in NO_INTEGER if v is not None), -1, 0],
    num_groups=[*NO_INTEGER, -1, 0, 'other'],
    channels_per_group=[*(v for v in NO_INTEGER if v is not None), -1, 0, 3],
    batch_groups=[*NO_INTEGER, -1, 0, 'other'],
    channel_groups=[*NO_INTEGER, -1, 0, 3, 'other'],
    r_max=[*NO_NUMBER, -1, 0.5, math.nan, math.inf],
    d_max=[*NO_NUMBER, -1, math.nan, math.inf],
    warmup=[*NO_INTEGER, -1, math.inf],
    method=NO_WORD,
    iterations=[*NO_INTEGER, -1, 0],
    learnable_eps=NO_FLAG,
    tlu=NO_FLAG,
    estimate=NO_FLAG,
    base=NO_WORD,
    tracked=NO_WORD,
    members=[*NO_INTEGER, -1, 0, 1, 4, 6, 'other'],
    tie_weight=NO_FLAG,
    key_channels=[*NO_INTEGER, -1, 0, 3, 'other'],
    window=[*NO_INTEGER, -1, 0],
    burnin=[*NO_INTEGER, -1, math.inf],
)
ARGUMENTS = [(name, argument) for name, norm in NORMS.items() for argument in known_arguments(norm)]


def test_known_arguments_are_those_of_the_constructors():
    for norm in NORMS.values():
        own = inspect.signature(norm.__init__).parameters
        variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        named = [name for name, p in own.items() if name != 'self' and p.kind not in variable]
        assert set(named) <= set(known_arguments(norm))
    assert known_arguments(NORMS['BRN'])[:7] == list(inspect.signature(nn.BatchNorm2d).parameters)[:7]


@pytest.mark.parametrize('name, argument', ARGUMENTS)
def test_a_bad_value_is_refused_by_layer_and_argument(name, argument):
    for value in BAD[argument]:
        if issubclass(NORMS[name], nn.GroupNorm) and argument == 'track_running_stats' and value is None:
            continue  # it has none to track
        with pytest.raises((TypeError, ValueError)) as error:
            NORMS[name](**{'num_features': CHANNELS, argument: value})
        assert re.match(rf'{name}\b', str(error.value)) and argument in str(error.value), (value, error.value)
        if argument in ('eps', 'num_features', 'momentum') and not isinstance(value, float | int):
            assert repr(value) in str(error.value)


@pytest.mark.parametrize('name', NORMS)
def test_eps_of_0_is_for_those_that_meet_no_variance_of_0(name):
    if NORMS[name].takes_eps_0:
        for method in [dict(method='iterative'), dict(method='zca')] if name == 'GW' else [{}]:
            layer = randomized(NORMS[name](CHANNELS, eps=0, **method))
            x = torch.randn(SHAPE)
            x[1] = 3  # constant
            y = layer(x.requires_grad_())
            y.square().sum().backward()
            assert y.isfinite().all() and x.grad.isfinite().all() and x.grad.abs().max() < 1e3
            if name == 'GW':
                torch.testing.assert_close(y[1], layer.bias[:, None, None].expand(SHAPE[1:]), rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(ValueError, match=rf'{name}\({CHANNELS}\): eps must be above 0'):
        NORMS[name](CHANNELS, eps=0)


@pytest.mark.parametrize('name', NORMS)
def test_numbers_of_numpy_are_taken(name):
    with seeded():
        layer = NORMS[name](np.int64(CHANNELS), eps=np.float32(1e-3), momentum=np.float64(0.5))
    assert type(layer.eps) is float and type(getattr(layer, 'momentum', 0.5)) is float
    x = torch.randn(SHAPE)
    with seeded():
        expected = NORMS[name](CHANNELS, eps=1e-3, momentum=0.5)
    torch.testing.assert_close(layer(x), expected(x))


@pytest.mark.parametrize('name', NORMS)
def test_a_typing_error_is_answered_with_what_there_is(name):
    with pytest.raises(TypeError, match=rf'{name}\({CHANNELS}\): unknown argument monentum=0.1; .*\bmomentum\b'):
        build(dict(type=name, monentum=0.1))
    with pytest.raises(TypeError, match=f"{name}: missing a required argument: 'num_features'"):
        NORMS[name]()
    with pytest.raises(TypeError, match=f'{name}: too many positional arguments'):
        NORMS[name](CHANNELS, 1e-5, 0.1, True, True, None, None, 2)


def test_a_norm_has_to_state_its_arguments():
    with pytest.raises(TypeError, match=r"has the arguments \['num_features', 'strength'\], but .* are stated"):

        class Forgetful(NORMS['SN']):
            @checked()
            def __init__(self, num_features, *args, strength=1.0, **kwargs):
                super().__init__(num_features, *args, **kwargs)


@pytest.mark.parametrize(
    'allowed, text',
    [
        (number(), 'a finite number'),
        (number(0, 1), 'a finite number of at least 0 and at most 1'),
        (number(above=0), 'a finite number above 0'),
        (integer(0) | FLAG, 'an integer of at least 0 or True or False'),
    ],
)
def test_what_is_allowed_is_said(allowed: Allowed, text):
    with pytest.raises(TypeError, match=f"SN: it must be {text}, got 'x'"):
        allowed.check('SN', 'it', 'x')


def first_words(node):
    """How a string, formatted or not, or the first of several, starts; '' if by something that is put in."""
    while not isinstance(node, ast.Constant):
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if not children or isinstance(node, ast.FormattedValue):
            return ''
        node = children[0]
    return str(node.value)


@pytest.mark.parametrize('path', sorted(Path(mmnorm.norms.__file__).parent.glob('*.py')), ids=lambda path: path.stem)
def test_messages_name_the_class_in_use_and_no_base_or_twin(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
    messages = [first_words(call.args[0]) for call in calls if getattr(call.func, 'id', '') == 'warn_once']
    messages += [first_words(c.args[0]) for c in calls if getattr(c.func, 'id', '').endswith('Error')]
    assert not [text for text in messages if re.match(rf'({"|".join(NORMS)}|PlaneNorm|BatchFreeNorm|Mixture)\b', text)]
