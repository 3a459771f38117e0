import os
import shutil
import signal
import subprocess
import sys
from collections import OrderedDict
from functools import partial
from unittest import mock

import pytest
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader

from .processes import ROOT, run, run_forked


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the tests marked slow too')


def pytest_configure(config):
    config.addinivalue_line('markers', 'e2e: trains, or runs a network, in processes of its own')
    config.addinivalue_line('markers', 'slow: for a release; another test shows the same in a shorter form')
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for module in ('torch.jit', 'pycocotools'):  # of no concern here, and hundreds of lines
        config.addinivalue_line('filterwarnings', rf'ignore::DeprecationWarning:{module}.*')


def pytest_collection_modifyitems(config, items):
    """Skip slow tests, unless --slow or -m slow asks for them."""
    if not config.getoption('slow') and 'slow' not in config.getoption('markexpr'):
        for item in items:
            if item.get_closest_marker('slow'):
                item.add_marker(pytest.mark.skip(reason='slow: --slow runs it'))


@pytest.fixture(autouse=True)
def own_environment():
    """What a test sets in this process ends with it: the environment and mmengine's loader, by which tools forbid
    checkpoints that run code, mmengine's default scope, in which names of configs are looked up, and the answer to
    Ctrl-C, which processes inherit. A test begins without a scope, as a process does: a fixture of a module, which is
    set up before this one, would leave its scope to every file after it."""
    sigint = signal.getsignal(signal.SIGINT)
    scopes = mock.patch.object(DefaultScope, '_instance_dict', OrderedDict())
    loader = mock.patch.object(CheckpointLoader, 'load_checkpoint', CheckpointLoader.load_checkpoint)
    with mock.patch.dict(os.environ), scopes, loader:
        yield
    signal.signal(signal.SIGINT, sigint)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A small digits data set."""
    from mmnorm.data import DigitsOptions, make_digits

    root = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(root, DigitsOptions(num_train=16, num_val=4, image_size=64, digit_size=(16, 40)))
    return root


@pytest.fixture(scope='session')
def source(tmp_path_factory):
    """A copy of this checkout: a build leaves files behind."""
    source = tmp_path_factory.mktemp('wheel') / 'source'
    source.mkdir()
    for name in ('mmnorm', 'configs', 'tools', 'tests'):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in (
        'setup.py',
        'mmnorm_door.py',
        'README.md',
        'LICENSE',
        'model-index.yml',
        'pyproject.toml',
        'MANIFEST.in',
    ):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope='session')
def wheel(source):
    """The wheel of this checkout, built with what is installed."""
    folder = source.parent
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', folder, source],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    (found,) = folder.glob('mmnorm-*.whl')
    return found


@pytest.fixture
def digits_config(digits, tmp_path):
    """Write a config in another project's folder that trains a config of ours on the small data set.

    Images are small, and as many proposals are taken and detections given as they have room for.
    """

    def write(extra='', base='mask_rcnn_xbn_r50_digits', name='project.py'):
        small = tmp_path / f'{base}_small.py'
        small.write_text(f"""
_base_ = {str(ROOT / 'configs' / f'{base}.py')!r}
pipeline = [dict(step, scale=(64, 64)) if step['type'] == 'Resize' else step for step in _base_.pipeline]
model = dict(train_cfg=dict(rpn_proposal=dict(max_per_img=20)),
             test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(max_per_img=10)))
""")
        path = tmp_path / name
        path.write_text(f"""
_base_ = './{small.name}'
data = dict(data_root={str(digits / 'coco')!r}, pipeline=_base_.pipeline)
train_dataloader = dict(batch_size=2, dataset=data)
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={str(digits / 'coco/annotations/instances_val2017.json')!r})
test_evaluator = val_evaluator
{extra}
""")
        return path

    return write


@pytest.fixture
def tool(tmp_path):
    """Run a tool of ours (by name) or any script (by path), as a user would, in a folder that is not ours."""
    return partial(run, tmp_path)


@pytest.fixture
def forked_tool(tmp_path):
    """As ``tool``, ten times as quick to start, for tests of what a tool does rather than of how it is started."""
    return partial(run_forked, tmp_path)


@pytest.fixture
def forked_training(forked_tool, monkeypatch):
    """Have trainings that a command starts in processes of their own be forked."""

    def run(command, env):
        assert command[:4] == [sys.executable, '-m', 'mmnorm_door', 'train']
        config, *args = command[4:]
        ranks = None
        if args[0] == '--processes':
            ranks, args = int(args[1]), args[2:]
        done = forked_tool('train.py', config, *args, ranks=ranks)
        print(done.stdout)
        return done

    monkeypatch.setattr('mmnorm.cli.launch.subprocess.run', run)
