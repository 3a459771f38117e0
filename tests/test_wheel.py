"""The wheel beside torch and numpy alone: every layer, and all that works on built networks."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

from .processes import ROOT

PROGRAM = """
import sys, warnings
import torch
from torch import nn
import mmnorm
from mmnorm.norms import NORMS

warnings.simplefilter('ignore')
hosts = [name for name in sys.modules if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'rich', 'pandas')]
assert not hosts, hosts
x = torch.randn(4, 64, 6, 6)
for name, norm in NORMS.items():
    assert getattr(mmnorm, name) is norm
    layer = norm(64)
    y = layer(x.clone().requires_grad_())
    y.square().sum().backward()
    with torch.no_grad():
        assert layer.eval()(x).shape == x.shape


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))


batches = [torch.randn(4, 3, 12, 12) for _ in range(3)]
model = network()
assert [(n.name, n.type, n.channels, n.state) for n in mmnorm.list_norms(model)] == [
    ('1', 'BN', 8, 'trains'), ('4', 'BN', 8, 'trains')]
assert mmnorm.replace_norms(model, 'SN', where='1') == ['1'] and list(mmnorm.ratios(model)) == ['1']
assert mmnorm.harden(model)['1'] == (['IN'], ['IN'])
model = network()
assert set(mmnorm.recollect(model, batches)) == {'1', '4'}
assert mmnorm.measure_shift(model, batches)['4'].esm_mu >= 0
with mmnorm.perturbed([model[1]], 0.3):
    model(batches[0])
assert mmnorm.to_evalnorm(model) == ['1', '4']
assert 0 <= mmnorm.estimate_offline(model, batches)['1'][0] <= 1
model = network()
model(batches[0])
expected = model.eval()(batches[0])
assert len(mmnorm.fuse_conv_norm(model).folded) == 2
torch.testing.assert_close(model(batches[0]), expected, rtol=1e-4, atol=1e-4)
try:
    mmnorm.place_xbn(model)
except TypeError as error:
    assert 'no residual blocks' in str(error)
print('all of it works')
"""


def requirements_of(*names):
    """Installed distributions that some need, themselves included, extras left out."""
    found, asked = {}, list(names)
    while asked:
        name = re.sub(r'[-_.]+', '-', asked.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # what a marker leaves out on this machine
        asked += [re.match(r'[\w.-]+', line)[0] for line in found[name].requires or () if 'extra ==' not in line]
    return found.values()


def test_wheel_needs_torch_and_numpy_alone(wheel, tmp_path):
    """In a Python that sees nothing else: no site-packages, only links to torch, numpy and what they need."""
    site = tmp_path / 'site'
    site.mkdir()
    for distribution in requirements_of('torch', 'numpy'):
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ('..', '__pycache__')}:
            source = Path(distribution.locate_file(top))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    done = subprocess.run(
        [sys.executable, '-S', '-c', PROGRAM],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment, PYTHONPATH=str(site)),
    )
    assert done.returncode == 0 and done.stdout.endswith('all of it works\n'), done.stdout


def test_wheel_carries_what_is_used_from_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        'mmnorm/py.typed',
        'mmnorm/data/digits.py',
        'mmnorm/.mim/configs/metafile.yml',
        'mmnorm/.mim/configs/mask_rcnn_xbn_r50.py',
        'mmnorm/.mim/tools/train.py',
        'mmnorm/report/report.html.j2',
    ):
        assert expected in names
    tools = {path.name for path in (ROOT / 'tools').iterdir() if path.is_file()}
    of_a_checkout = {'setup_env.py', 'quickstart.sh', 'run_tests.sh', 'lint.sh', 'enter_env.sh'}
    carried = {name.removeprefix('mmnorm/.mim/tools/') for name in names if name.startswith('mmnorm/.mim/tools/')}
    assert carried == tools - of_a_checkout
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith('/METADATA'))).decode()
    for key in ('Author', 'Keywords', 'Classifier', 'Project-URL'):
        assert f'\n{key}: ' in metadata
    (points,) = (name for name in names if name.endswith('/entry_points.txt'))
    assert 'mmnorm = mmnorm_door:main' in zipfile.ZipFile(wheel).read(points).decode() and 'mmnorm_door.py' in names
    assert {
        line.partition(': ')[2]
        for line in metadata.splitlines()
        if line.startswith('Requires-Dist') and 'extra ==' not in line
    } == {'torch>=2.5', 'numpy'}


def test_an_editable_install_is_not_hidden_by_a_clone_of_its_name(source, tmp_path):
    """In the folder that holds a clone called mmnorm, and under a project's PYTHONPATH that does."""
    build = 'import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])'
    subprocess.run([sys.executable, '-c', build, tmp_path], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (built,) = tmp_path.glob('mmnorm-*.whl')
    zipfile.ZipFile(built).extractall(tmp_path / 'site-packages')
    project = tmp_path / 'project'
    (project / 'mmnorm').mkdir(parents=True)
    # -S, for the environment of the tests has an editable install of its own
    code = (
        'import site, sys; site.addsitedir(sys.argv[1]); sys.path.append(sys.argv[2]); '
        'from mmnorm import SN; import mmnorm; print(mmnorm.__file__)'
    )
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    found = subprocess.run(
        [sys.executable, '-S', '-c', code, tmp_path / 'site-packages', sysconfig.get_path('purelib')],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].startswith(str(source))


def test_source_archive_has_what_a_clone_has(source, tmp_path):
    build = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
    subprocess.run([sys.executable, '-c', build, tmp_path], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (archive,) = tmp_path.glob('mmnorm-*.tar.gz')
    with tarfile.open(archive) as content:
        names = {name.partition('/')[2] for name in content.getnames()}
    for folder in ('configs', 'tests', 'tools'):
        files = [path for path in (source / folder).rglob('*') if path.is_file() and path.suffix != '.pyc']
        missing = {str(path.relative_to(source)) for path in files} - names
        assert not missing and len(files) > 10
    assert {'LICENSE', 'README.md', 'model-index.yml', 'mmnorm_door.py'} <= names
