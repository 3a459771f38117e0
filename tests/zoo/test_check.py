"""The configs of the zoo are what their entries say, and the check of that finds what is wrong with one."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmnorm.norms import IBN, SN, FrozenBN
from mmnorm.zoo import check, load_zoo
from mmnorm.zoo.check import check_model, count_norms, step
from mmnorm.zoo.rows import PAPERS

from .configs import config

pytest.importorskip('mmpretrain', reason='the zoo has configs that inherit from those of mmpretrain')
ZOO = load_zoo()
NETWORKS = {}  # what the checks of all rows have found of networks, each built once


def parts(tree, place=''):
    """Yield the place and the type of whatever a config's model (dict) builds."""
    if isinstance(tree, dict):
        if 'type' in tree:
            yield place, str(tree['type'])
        for key, branch in tree.items():
            yield from parts(branch, f'{place}.{key}')
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from parts(branch, place)


@pytest.fixture(scope='module')
def with_new_parts():
    """Names of the configs with a part, or with norms in a state, that none before has: together they have all."""
    known, names = set(), set()
    for name, model in ZOO.items():
        states = {
            (part, kind, re.sub(r'\d', '', count))
            for part, kinds in model.norms.items()
            for kind, count in kinds.items()
        }
        found = {*parts(config(model.path).model), *states}
        if not found <= known:
            names.add(name)
        known |= found
    return names


@pytest.mark.timeout(900)
@pytest.mark.parametrize('paper', PAPERS)
def test_all_configs_are_what_their_entries_say(paper, with_new_parts, monkeypatch):
    """All are built, with weights that are shapes alone, and those with new parts make a step of training and test."""
    monkeypatch.setattr(Config, 'fromfile', config)
    problems = {}
    for name, model in ZOO.items():
        if model.paper != paper:
            continue
        if name in with_new_parts:
            problems[name] = check_model(model, NETWORKS).problems
        else:
            with monkeypatch.context() as patch, torch.device('meta'):
                patch.setattr(check, 'step', lambda *args: None)
                patch.setattr(torch, 'linspace', partial(torch.linspace, device='cpu'))  # mmpretrain reads its values
                problems[name] = check_model(model, NETWORKS).problems
    assert problems and not any(problems.values()), problems


@pytest.mark.e2e
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    'names, options',
    [
        (['faster_rcnn_en_r50_digits', 'pspnet_xbn_r50_digits'], ['--jobs', 1]),
        pytest.param([], [], marks=pytest.mark.slow),
    ],
    ids=['two', 'all'],
)
def test_the_tool_checks_those_that_are_named_or_all(tool, names, options):
    run = tool('zoo.py', 'check', *names, *options, timeout=1800)
    assert run.returncode == 0, '\n'.join(line for line in run.stdout.splitlines() if 'as its entry says' not in line)
    number = len(names or ZOO)
    assert f'{number} of {number} configs match their entries' in run.stdout


@pytest.fixture(scope='module')
def owners():
    """The entry of the owner's config."""
    return ZOO['mask_rcnn_xbn_r50']


def variant(model, tmp_path, text):
    """The entry with a config that inherits the entry's own and goes on with a text."""
    path = tmp_path / 'variant.py'
    path.write_text(f'_base_ = {str(model.path)!r}\n{text}\n')
    return replace(model, config=str(path))


def test_what_its_entry_says(owners):
    assert not check_model(owners).problems


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('model = dict(backbone=dict(xbn=dict(stem=False)))', r'37 fixed.*its entry says .*36 fixed'),
        ('model = dict(backbone=dict(frozen_stages=-1))', r"'GN': '17'.*13 \+ 4 fixed"),
        ('model = dict(backbone=dict(depth=49))', 'KeyError'),
        ('model = dict(rpn_head=dict(loss_cls=dict(loss_weight=float("inf"))))', 'loss_rpn_cls.* is not finite'),
        ('auto_scale_lr = dict(enable=False)', 'auto_scale_lr'),
        ('syntax error', 'cannot be read'),
    ],
)
def test_problems_are_named(owners, tmp_path, text, problem):
    model = replace(owners, pretrained=dict(File=owners.pretrained['File']))  # whose pretraining is another matter
    found = check_model(variant(model, tmp_path, text)).problems
    assert len(found) == 1
    assert re.search(problem, found[0])


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (dict(pretrained={'File': 'other.pth'}), 'starts from pretrained/resnet50_xbn.pth, its entry says other.pth'),
        (dict(placed=r'layer\d\.\d+\.bn3'), r'bn1, layer1.0.bn2, .* are placed, its entry says layer'),
    ],
)
def test_entry_that_says_something_else(owners, change, problem):
    (found,) = check_model(replace(owners, **change)).problems
    assert re.search(problem, found)


@pytest.fixture(scope='module')
def classifier():
    """The entry of a classification row."""
    return ZOO['resnet50_xbn_in1k']


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('train_cfg = dict(max_epochs=90)', 'trains with Epochs 90, its entry says 100'),
        ('param_scheduler = dict(milestones=[30, 60])', r'Schedule \[30, 60\], its entry says \[30, 60, 90\]'),
        ('optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))', 'Decay 1e-05, its entry says 0.0001'),
        ('auto_scale_lr = dict(base_batch_size=128)', 'Batch 128, its entry says 256'),
        ('model = dict(head=dict(num_classes=0))', 'num_classes=0'),
    ],
)
def test_recipe_is_that_of_the_entry(classifier, tmp_path, text, problem):
    found = check_model(variant(classifier, tmp_path, text)).problems
    assert len(found) == 1
    assert re.search(problem, found[0])


def test_batch_by_gpu_where_the_paper_has_it(tmp_path):
    model = variant(ZOO['resnet50_sn_8x2_in1k'], tmp_path, 'train_dataloader = dict(batch_size=4)')
    assert check_model(model).problems == ['it trains with Batch 4 x 4, its entry says 8 x 2']


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('model = dict(backbone=dict(xbn=dict(stem=False)))', 'bn1 is GN of 64 groups, there BN'),
        ('model = dict(backbone=dict(xbn=dict(position=1)))', 'layer1.0.bn1 is BN, there GN of 64 groups'),
        ('model = dict(backbone=dict(depth=101))', r'layer3.6.* is not there, there'),
        ('model = dict(backbone=dict(stem_channels=32))', 'bn1 is GN of 64 groups, there GN of 32 groups'),
        (
            'model = dict(backbone=dict(xbn=dict(norm_cfg=dict(type="GN", num_groups=32))))',
            'of 64 groups, there GN of 32 groups',
        ),
        ("model = dict(backbone=dict(style='caffe'))", r'conv1 is Conv2d of stride \(1, 1\), .*there .*\(2, 2\)'),
        ('data_preprocessor = dict(to_rgb=False)', 'images have mean, deviation and RGB'),
    ],
)
def test_pretraining_that_does_not_fit(owners, classifier, tmp_path, text, problem):
    source = variant(classifier, tmp_path, text).config
    (found,) = check_model(replace(owners, pretrained=owners.pretrained | {'From': source})).problems
    assert re.search(problem, found)


@pytest.mark.parametrize(
    ('options', 'problem'),
    [({'model.backbone.norm_cfg.type': 'EN'}, 'its norms are EN, GN'), ({'model.backbone.depth.x': 2}, 'depth')],
)
def test_options_of_a_row_must_give_its_norms(owners, options, problem):
    row = replace(owners.published[0], options=options)
    assert problem in check_model(replace(owners, published=(row,))).problems[0]


def test_counts_by_state():
    backbone = nn.Sequential(
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4),
        FrozenBN(4),
        SN(4),
        SN(4),
        nn.GroupNorm(2, 4),
        nn.GroupNorm(2, 4),
        IBN(4),
    )
    model = nn.ModuleDict(dict(backbone=backbone, neck=nn.Conv2d(3, 4, 1)))
    model.train()
    backbone[1].eval()
    backbone[2].eval().requires_grad_(False)
    backbone[5].requires_grad_(False)
    backbone[7].requires_grad_(False)
    assert count_norms(model) == {
        'backbone': {
            'BN': '1 + 1 held + 1 fixed',
            'FrozenBN': '1 fixed',
            'SN': '1 + 1 by batch',
            'GN': '1 + 1 fixed',
            'IBN': '1',
        }
    }


class Leaky(nn.Module):
    """A network whose training step changes a layer that is fixed."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.BatchNorm2d(2).eval().requires_grad_(False)
        self.head = nn.Conv2d(2, 2, 1)

    def train_step(self, data, optim_wrapper):
        self.backbone.weight.data += 1
        return dict(loss=torch.zeros(()))

    def test_step(self, data):
        return ['something']


def test_fixed_layer_that_changes_is_named():
    cfg = Config(
        dict(
            default_scope='mmseg',
            model=dict(decode_head=dict(num_classes=2)),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        )
    )
    problems = []
    step(Leaky(), cfg, problems)
    assert problems == ['backbone is fixed and was changed by a training step']
