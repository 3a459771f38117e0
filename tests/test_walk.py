"""A walk through what somebody with a project of mmdet or mmseg does: the wheel installed, the tools that they have.

The environment has the wheel and the packages of this one, but not this checkout; the project has a config that
inherits from mmdet's by name, a class of its own and data of its own. Commands are called from another folder.
"""

import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from .processes import run, run_forked
from .tools.test_existing_projects import MMDET, MMSEG, PROJECTS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# A class as projects have them: of a host's, in its registry, found by a custom import
COUNTING = """
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS


@DATASETS.register_module()
class Counting(CocoDataset):
    METAINFO = dict(classes=tuple('0123456789'))
"""
# Beside a model and a data set of the project, only what keeps it small
DETECTOR = """
_base_ = {base!r}
custom_imports = dict(imports=['counting'], allow_failed_imports=False)

model = dict(
    backbone=dict(depth=18, base_channels=16, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16),
                  bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=10)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=20)),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(max_per_img=10)))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
loader = dict(num_workers=0, persistent_workers=False,
              dataset=dict(type='Counting', data_root='{{{{ fileDirname }}}}/digits/coco/', pipeline=pipeline))
train_dataloader = dict(batch_size=2, **loader)
val_dataloader = test_dataloader = loader
val_evaluator = test_evaluator = dict(
    ann_file='{{{{ fileDirname }}}}/digits/coco/annotations/instances_val2017.json')
train_cfg = dict({length})
"""
CONFIGS = {
    'detector.py': DETECTOR.format(base='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', length='max_epochs=1'),
    # one import line and one changed key
    'adopted.py': """
_base_ = './detector.py'
custom_imports = dict(imports=['counting', 'mmnorm'], allow_failed_imports=False)
model = dict(backbone=dict(type='XBNResNet'))
""",
    # as mmdet's own tools, which know mmnorm by the config alone, find it
    'frozen.py': """
_base_ = ['./adopted.py', f'{__import__("mmnorm").__path__[0]}/.mim/configs/_base_/frozen_norm.py']
model = dict(backbone=dict(**_base_.frozen_norm))
""",
    'live.py': """
_base_ = ['./adopted.py', 'mmnorm::_base_/live_norm.py']
model = dict(backbone=dict(**_base_.live_norm))
""",
    # from a row of a paper
    'row.py': DETECTOR.format(base='mmnorm::xbn/faster_rcnn_xbn_r50_scratch_8x2.py', length='max_iters=1').replace(
        "['counting']", "['counting', 'mmnorm']"
    ),
}


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """The Python of an environment of its own, into which pip has installed the wheel."""
    home = tmp_path_factory.mktemp('walk') / 'environment'
    venv.create(home, symlinks=True)
    python = str(home / 'bin/python')
    pip = [sys.executable, '-m', 'pip', '--python', python, '--disable-pip-version-check']
    subprocess.run([*pip, 'install', '--quiet', '--no-index', '--no-deps', wheel], check=True)
    (site,) = home.glob('lib/python*/site-packages')
    # a folder that a .pth names is on the path, without what its own .pth files name: the editable install of mmnorm
    (site / 'packages.pth').write_text(sysconfig.get_path('purelib'))
    (site / 'project.pth').write_text(str(home.with_name('project')))
    return python


@pytest.fixture(scope='module')
def project(python):
    """The folder of the project; beside it is another one, in which commands are called."""
    folder = Path(python).parents[2] / 'project'
    folder.mkdir()
    (folder / 'counting.py').write_text(COUNTING)
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    folder.with_name('elsewhere').mkdir()
    return folder


@pytest.fixture(scope='module')
def mmnorm(python, project):
    """Call the program that pip has made, in another folder than the project's; returns what it said."""

    def call(*args, status=0, run=run_forked):
        done = run(project.with_name('elsewhere'), str(Path(python).with_name('mmnorm')), *args, python=python)
        assert done.returncode == status, done.stdout[-3000:]
        return done.stdout

    return call


@pytest.fixture(scope='module')
def data(project, mmnorm):
    """The data of the project."""
    size = ['--image-size', 64, '--digit-size', 16, 40]
    assert 'written' in mmnorm('digits', project / 'digits', '--train', 4, '--val', 2, *size)


@pytest.fixture(scope='module')
def trained(python, project, data):
    """What mmdet's own tool said when it trained the project, with one import line and one changed key."""
    done = run(project, str(MMDET / 'tools/train.py'), 'adopted.py', python=python)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_the_environment_has_the_wheel_and_not_the_checkout(python, project, tmp_path):
    (tmp_path / 'where.py').write_text('import mmnorm, mmnorm_door; print(mmnorm.__file__, mmnorm_door.__file__)')
    done = run_forked(tmp_path, str(tmp_path / 'where.py'), python=python)
    assert done.returncode == 0 and done.stdout.count(str(Path(python).parents[1])) == 2, done.stdout


def test_mmdets_own_tools(python, project, trained):
    assert 'Saving checkpoint at 1 epochs' in trained and 'coco/bbox_mAP: ' in trained
    assert trained.count('XBNResNet has norm_eval=True') == 1
    told = [Path(path) for path in re.findall(r'\((\S+/_base_/\w+\.py)\)', trained)]
    assert [path.name for path in told] == ['live_norm.py', 'frozen_norm.py'] and all(path.is_file() for path in told)
    checkpoint = project / 'work_dirs/adopted/epoch_1.pth'
    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    assert 'backbone.layer1.0.bn2.running_mean' in weights and 'backbone.layer1.0.bn1.running_mean' not in weights
    done = run_forked(project, str(MMDET / 'tools/test.py'), 'frozen.py', checkpoint, python=python)
    assert done.returncode == 0 and 'coco/bbox_mAP: ' in done.stdout, done.stdout[-3000:]


def test_mmsegs_own_tool(python, project, data, tmp_path):
    _, template, model, _ = PROJECTS['mmseg-RBN']
    (tmp_path / 'segmentor.py').write_text(template.format(model=model, digits=project / 'digits', mmseg=MMSEG))
    done = run_forked(tmp_path, str(MMSEG / 'tools/train.py'), 'segmentor.py', python=python)
    assert done.returncode == 0 and 'Saving checkpoint at 1' in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize(
    'config, kinds',
    [
        ('adopted.py', {'BN': {'fixed', 'held'}, 'GN': {'fixed', 'trains'}}),
        ('live.py', {'BN': {'trains'}, 'GN': {'trains'}}),
        ('frozen.py', {'FrozenBN': {'fixed'}, 'GN': {'fixed', 'trains'}}),
    ],
)
def test_frozen_and_live_norms(mmnorm, project, config, kinds):
    rows = [line.split() for line in mmnorm('norms', project / config).splitlines()]
    found = [(kind, state) for part, kind, *_, state in rows if part.startswith('backbone')]
    assert {kind: {state for other, state in found if other == kind} for kind, _ in found} == kinds


def test_commands_on_what_mmdets_tool_trained(mmnorm, project, trained):
    """With the advice that they give on the way."""
    config, checkpoint = project / 'adopted.py', project / 'work_dirs/adopted/epoch_1.pth'
    said = mmnorm('check-data', config)
    assert 'train: Counting ' in said and '\n0 errors' in said
    mmnorm('diagnose', config, checkpoint, '--check', 1)
    mmnorm('report', checkpoint.parent)
    page = checkpoint.with_name('report.md')
    assert 'it is for runs that mmnorm train did not start' in page.read_text()
    (advice,) = re.findall(r'mmnorm (test .+) writes the predictions', page.read_text())
    assert 'coco/bbox_mAP: ' in mmnorm(*advice.replace('CHECKPOINT', str(checkpoint)).split())
    mmnorm('report', checkpoint.parent)
    assert 'writes the predictions' not in page.read_text() and 'AP^bbox' in page.read_text()

    mmnorm('convert', checkpoint, 'whole.pth', '--to', 'XBN', '--config', config, '--whole')
    published = mmnorm('publish', checkpoint, '--out', 'shared.pth').splitlines()[-1]
    elsewhere = project.with_name('elsewhere')
    assert (elsewhere / 'whole.pth').is_file() and (elsewhere / published).is_file()


def test_a_row_of_a_paper_on_own_data(mmnorm, project, data):
    """By `mmnorm::`, with processes of their own."""
    row = project / 'row.py'
    assert 'configs/xbn/faster_rcnn_xbn_r50_scratch_8x2.py' in mmnorm('zoo', 'list', '--paper', 'xbn')
    (shown,) = json.loads(mmnorm('zoo', 'show', 'faster_rcnn_xbn_r50_scratch_8x2'))
    assert shown['task'] == 'object detection'
    absent = mmnorm('train', row, '--cfg-options', 'train_dataloader.dataset.data_root=nowhere', status=2)
    assert Path(re.search(r'mmnorm digits makes the embedded data set, and (\S+) trains on it', absent)[1]).is_file()
    said = mmnorm('train', row, '--processes', 2, '--work-dir', 'run', run=run)
    assert 'faster_rcnn_xbn_r50_scratch_8x2.py: the paper' in said  # beside which it is not put: the data are others
    (advice,) = re.findall(r'^mmnorm (.+) writes a report$', said, flags=re.M)
    mmnorm(*advice.split())
    assert (project.with_name('elsewhere') / 'run/report.html').is_file()


def test_a_mistake_is_one_line(mmnorm, project, data):
    said = mmnorm('train', project / 'adopted.py', '--cfg-options', 'model.backbone.type=XBNResnet', status=2)
    assert f'error: {project / "adopted.py"}: model.backbone: ' in said and 'nearest: XBNResNet' in said
    assert 'Traceback' not in said
