"""Configs of the zoo as parents of other people's, by ``mmnorm::`` and by path."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmnorm  # noqa: F401
from mmnorm.engine.settings import wrong_settings
from mmnorm.zoo import load_zoo

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def inherit(tmp_path):
    """The config (Config) of another project with parents and lines of its own."""

    def write(*parents, extra=''):
        path = tmp_path / 'project.py'
        path.write_text(f'_base_ = {list(parents)!r}\n{extra}')
        return Config.fromfile(path)

    return write


@pytest.mark.parametrize('name', list(load_zoo())[::20])
def test_mmnorm_parents_are_what_their_files_are(inherit, name):
    config = load_zoo()[name].config.removeprefix('configs/')
    if '/classification/' in config:
        pytest.importorskip('mmpretrain')
    assert inherit(f'mmnorm::{config}').to_dict() == Config.fromfile(CONFIGS / config).to_dict()


@pytest.mark.parametrize(
    'host, name',
    [
        ('mmseg', 'sn/deeplabv3_sn_r50_cityscapes.py'),
        ('mmdet', 'rbn/panoptic_fpn_rbn_r50.py'),
        ('mmdet', 'mask_rcnn_xbn_r50.py'),
    ],
)
def test_what_they_name_is_found(inherit, host, name):
    from mmengine.registry import DATASETS, METRICS, MODELS, VISUALIZERS

    cfg = inherit(f'mmnorm::{name}')
    assert cfg.default_scope == host
    init_default_scope(host)
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    named = [
        (MODELS, cfg.model),
        (MODELS, cfg.model.backbone),
        (VISUALIZERS, cfg.visualizer),
        (DATASETS, cfg.train_dataloader.dataset),
        *((METRICS, evaluator) for evaluator in evaluators),
    ]
    for registry, part in named:
        assert '_scope_' not in part or part['_scope_'] == host
        with registry.switch_scope_and_registry(part.get('_scope_', host)) as found:
            assert found.get(part.type).__module__.startswith((host, 'mmnorm')), part.type


@pytest.mark.parametrize('base', ['frozen_norm', 'live_norm', 'scratch_norm', 'gn_norm'])
def test_small_bases_have_nothing_but_what_they_say(inherit, base):
    cfg = inherit(f'mmnorm::_base_/{base}.py')
    assert '_scope_' not in str(cfg[base])


def home_of(host):
    """The folder (Path) of the configs that a host's package carries."""
    return Path(importlib.util.find_spec(host).origin).parent / '.mim/configs'


def configs_of(host):
    """How these configs are inherited: by name, or by path from folders that mmengine takes no name of (gn+ws)."""
    home = home_of(host)
    files = (path.relative_to(home) for path in sorted(home.rglob('*.py')) if '_base_' not in path.parts)
    return [f'{host}::{file}' if re.fullmatch(r'\w+', file.parts[0]) else str(home / file) for file in files]


RECIPE = "model = dict(backbone=dict(type='XBNResNet', **_base_.live_norm))"
EVERY_CONFIG = [*configs_of('mmdet'), *configs_of('mmseg')]
# with custom_hooks, with a list of parents, and whatever else comes
SOME_CONFIGS = ['mmdet::yolox/yolox_s_8xb8-300e_coco.py', 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py']
SOME_CONFIGS += ['mmdet::v3det/deformable-detr-refine-twostage_r50_8xb4_sample1e-3_v3det_50e.py', *EVERY_CONFIG[::150]]


# What mmengine says of configs, by path, where nothing has imported mmnorm
ALONE = """
import json, sys
from mmengine.config import Config

said = []
for path in json.load(sys.stdin):
    try:
        error = None if 'model' in Config.fromfile(path) else 'it has no model'  # a script among the configs
    except Exception as failure:
        error = f'{type(failure).__name__}: {failure}'
    said.append(error)
assert 'mmnorm' not in sys.modules
json.dump(said, sys.stdout)
"""


def errors_without_mmnorm(names):
    """What the hosts alone say of configs of theirs (list[str or None]); None of one that they load."""
    parts = [name.rpartition('::') for name in names]
    paths = [str(home_of(host) / file) if host else file for host, _, file in parts]
    done = subprocess.run([sys.executable, '-c', ALONE], input=json.dumps(paths), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    'names', [SOME_CONFIGS, pytest.param(EVERY_CONFIG, marks=pytest.mark.slow)], ids=['some', 'every']
)
def test_the_recipe_with_any_config_of_the_hosts(inherit, names):
    """It only loads them; what is run of them is in test_existing_projects."""
    failed = {}
    for name in names:
        try:
            cfg = inherit(name, str(CONFIGS / '_base_/live_norm.py'), extra=RECIPE)
            assert cfg.model.backbone.norm_eval is False
            # and mmnorm's own commands do not refuse it, but for parts that a host's file leaves to its heirs
            assert not [line for line in wrong_settings(cfg, ()) if 'is missing' not in line]
        except Exception as error:
            failed[name] = f'{type(error).__name__}: {error}'
    assert len(failed) < 0.1 * len(names), failed
    # of their own: a parent that the package does not carry, or another package that it needs
    assert not [(name, failed[name]) for name, alone in zip(failed, errors_without_mmnorm([*failed])) if alone is None]


def test_a_name_that_does_not_exist(inherit):
    with pytest.raises(FileNotFoundError, match='project.py inherits mmnorm::sn/gone.py, but .* has no such file'):
        inherit('mmnorm::sn/gone.py')


def test_by_path_without_importing_mmnorm_before(tmp_path):
    """As under the tools of mmdet, which know mmnorm by the config alone; configs/README.md has this line."""
    path = tmp_path / 'project.py'
    path.write_text('_base_ = f"{__import__(\'mmnorm\').__path__[0]}/.mim/configs/sn/faster_rcnn_sn_r50_sn_head.py"')
    script = f'from mmengine.config import Config; print(Config.fromfile({str(path)!r}).model.backbone.norm_cfg.type)'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == 'SN', done.stderr  # behind what is said of hosts that are not there
