import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from mmengine.registry import DefaultScope

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    config.addinivalue_line('markers', 'e2e: trains in processes of its own; takes a minute or more')
    for module in ('torch.jit', 'pycocotools'):  # of no concern here, and hundreds of lines
        config.addinivalue_line('filterwarnings', rf'ignore::DeprecationWarning:{module}.*')


@pytest.fixture(autouse=True)
def own_environment():
    """What a test sets in this process ends with it: the environment, in which tools forbid checkpoints that run code,
    and mmengine's default scope, in which names of configs are looked up."""
    scopes = mock.patch.object(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
    with mock.patch.dict(os.environ), scopes:
        yield


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A small digits data set."""
    from mmnorm.data import DigitsOptions, make_digits
    root = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(root, DigitsOptions(num_train=24, num_val=8, image_size=64, digit_size=(16, 40)))
    return root


@pytest.fixture
def digits_config(digits, tmp_path):
    """Write a config in another project's folder that trains a config of ours on the small data set."""

    def write(extra='', base='mask_rcnn_xbn_r50_digits', name='project.py'):
        path = tmp_path / name
        path.write_text(f"""
_base_ = {str(ROOT / 'configs' / base)!r} + '.py'
data = dict(data_root={str(digits / 'coco')!r})
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

    def run(name, *args, timeout=300):
        return subprocess.run(
            command(name, *args), cwd=tmp_path, env=environment(), timeout=timeout, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    return run


def command(name, *args):
    """The command line of a tool."""
    path = name if os.path.isabs(name) else str(ROOT / 'tools' / name)
    return [*([sys.executable] if path.endswith('.py') else []), path, *map(str, args)]


def environment():
    """The environment of a user who has activated this Python's environment."""
    return dict(os.environ, PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}', OMP_NUM_THREADS='1')
