"""What configs of mmseg and mmpretrain inherit from: files of the hosts, found without mmnorm, that do not differ."""

import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import mmseg
import pytest
from mmengine.config import Config

from mmnorm.zoo import load_zoo

CONFIGS = Path(__file__).parents[2] / 'configs'
MMSEG = Path(mmseg.__file__).parent / '.mim/configs'
MORE = {'custom_imports', 'live_norm', 'auto_scale_lr'}  # what ours add


@pytest.mark.parametrize(
    ('base', 'parent'),
    [
        ('deeplabv3_r50_ade20k', 'deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512'),
        ('deeplabv3_r50_cityscapes', 'deeplabv3/deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024'),
        ('deeplabv3plus_r50_ade20k', 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512'),
        ('deeplabv3plus_r50_cityscapes', 'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024'),
    ],
)
def test_segmentors_are_those_of_mmseg(base, parent):
    ours = Config.fromfile(CONFIGS / f'_base_/{base}.py').to_dict()
    assert ours.keys() >= MORE
    assert {key: value for key, value in ours.items() if key not in MORE} == Config.fromfile(
        MMSEG / f'{parent}.py'
    ).to_dict()


@pytest.mark.skipif(find_spec('mmpretrain') is None, reason='some inherit from configs of mmpretrain')
def test_read_without_importing_mmnorm_before():
    """As by mmseg's and mmpretrain's own tools, which know mmnorm by the config alone."""
    classifiers = ('resnet50_xbn_ls_mixup_cos_in1k', 'mobilenetv2_rbn_in1k', 'resnet50_rbn_cifar100')
    paths = [
        str(model.path)
        for name, model in load_zoo().items()
        if model.task == 'semantic segmentation' or name in classifiers
    ]
    script = f"""
import sys
from mmengine.config import Config
for path in {paths!r}:
    cfg = Config.fromfile(path, import_custom_modules=False)
    assert cfg.default_scope in ('mmseg', 'mmpretrain') and cfg.custom_imports.imports == ['mmnorm'], path
assert 'mmnorm' not in sys.modules
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_no_two_configs_spell_out_the_same_file_of_mmseg():
    parents = [parent for path in CONFIGS.rglob('*.py') for parent in Config._get_base_files(str(path))]
    parents = Counter(parent for parent in parents if parent.startswith(str(MMSEG)))
    assert parents and set(parents.values()) == {1}
