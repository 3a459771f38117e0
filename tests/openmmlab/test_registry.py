import re
import subprocess
import sys

import pytest
from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS as DET
from mmengine.registry import MODELS as ROOT
from mmseg.registry import MODELS as SEG
from torch import nn

from mmnorm import norms
from mmnorm.openmmlab import registry


@pytest.mark.parametrize('name', norms.NORMS)
def test_norms_are_visible_from_every_scope(name):
    assert DET.get(name) is SEG.get(name) is ROOT.get(name) is getattr(norms, name)
    attribute, layer = build_norm_layer(dict(type=name, requires_grad=True, eps=1e-3), 8, postfix=2)
    # a BN checkpoint fits the BN-like ones key by key; the batch-free ones are called as mmcv calls GN
    assert attribute == ('bn2' if isinstance(layer, nn.BatchNorm2d) else 'gn2') and layer.eps == 1e-3


@pytest.mark.parametrize('host', registry.HOST_MODELS)
def test_models_are_in_their_hosts_registry(host):
    models = pytest.importorskip(host).registry.MODELS
    for module, names in registry.HOST_MODELS[host].items():
        for name in names:
            assert models.get(name).__module__ == module


def in_a_new_process(code):
    """What a Python program prints; it must not fail."""
    done = subprocess.run([sys.executable, '-c', code], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize('missing, present', [('mmseg', 'mmdet'), ('mmdet', 'mmseg'), ('mmpretrain', 'mmdet')])
def test_imports_without_a_host_and_says_what_is_left_out(missing, present):
    printed = in_a_new_process(
        f'import sys; sys.modules[{missing!r}] = None; import mmnorm; '
        f'from {present}.registry import MODELS; assert MODELS.get("XBNResNet") and MODELS.get("SN")'
    )
    left_out = ', '.join(name for names in registry.HOST_MODELS[missing].values() for name in names)
    assert f'{missing} is not installed, left out: {left_out}' in printed


@pytest.mark.parametrize('missing', ['mmcv', 'mmengine'])
def test_imports_without_what_the_hosts_need(missing):
    in_a_new_process(
        f'import sys; sys.modules[{missing!r}] = None; import torch, mmnorm\n'
        'assert mmnorm.SN(8)(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)'
    )


def test_importing_costs_no_model_package_until_a_name_is_looked_up():
    in_a_new_process(
        'import sys, mmnorm\n'
        'heavy = "mmcv.ops", "mmdet.datasets", "torchvision", "matplotlib", "pandas", "sklearn"\n'
        'heavy += "mmdet.models", "mmseg.models", "mmpretrain.models"\n'
        'assert not any(name in sys.modules for name in heavy), [name for name in heavy if name in sys.modules]\n'
        'from mmseg.registry import MODELS as SEG\n'
        'assert SEG.get("XBNResNetV1c").__name__ == "XBNResNetV1c"\n'
        'from mmdet.registry import MODELS as DET\n'
        'assert "PanopticFPNWithInstances" in DET and DET.get("FrozenBN") is mmnorm.FrozenBN\n'
    )


def test_registers_also_where_the_hosts_models_were_imported_before():
    in_a_new_process(
        'import mmdet.models\nfrom mmdet.registry import MODELS\n'
        'theirs = MODELS.get("ResNet"), MODELS.get("XBNResNet")\nassert theirs[0] and not theirs[1]\n'
        'import mmnorm\nassert MODELS.get("XBNResNet") and MODELS.get("FrozenBN") is mmnorm.FrozenBN\n'
    )


#: Names of ours, and the registries that a project has beside or above them.
TAKEN = [
    ('SN', 'mmengine', 'MODELS'),
    ('FrozenBN', 'mmengine', 'MODELS'),
    ('ShuffleNetV2', 'mmengine', 'MODELS'),
    ('PretrainedWithoutNorms', 'mmengine', 'WEIGHT_INITIALIZERS'),
    ('RecollectHook', 'mmengine', 'HOOKS'),
    ('IBN', 'mmdet', 'MODELS'),
    ('XBNResNet', 'mmdet', 'MODELS'),
    ('ListNormsHook', 'mmdet', 'HOOKS'),
    ('BGN', 'mmseg', 'MODELS'),
    ('XBNResNetV1c', 'mmseg', 'MODELS'),
]
TAKES = f"""
from importlib import import_module
registries = [(name, getattr(import_module(host + '.registry'), kind)) for name, host, kind in {TAKEN}]
def take():
    theirs = [type(name, (), dict(__module__='project.models')) for name, _ in registries]
    return [registry.register_module()(kind) for kind, (_, registry) in zip(theirs, registries)]
def check(theirs):
    assert [registry.get(name) for name, registry in registries] == theirs
    import mmdet.registry
    assert mmdet.registry.MODELS.get('XBNMobileNetV2').__module__.startswith('mmnorm')
"""


@pytest.mark.parametrize(
    'steps',
    [
        'theirs = take(); import mmnorm; check(theirs)',
        'import mmnorm; check(take())',
        'import mmnorm; [registry.get(name) for name, registry in registries]; check(take())',
    ],
    ids=['before', 'after', 'after a look-up'],
)
def test_a_projects_own_class_stays_and_is_named_beside_ours(steps):
    printed = in_a_new_process(TAKES + steps)
    ours = dict(re.findall(r"(\w+) is project.models.\w+ in configs, .*type='(mmnorm\.[\w.]+)'", printed))
    assert ours.keys() == {name for name, *_ in TAKEN}
    assert [ROOT.get(path).__name__ for path in ours.values()] == list(ours)


def test_two_classes_of_a_project_clash_as_ever():
    printed = in_a_new_process(
        'import mmnorm\nfrom mmengine.registry import MODELS\n'
        'class Own: pass\nMODELS.register_module(module=Own)\n'
        "try: MODELS.register_module(module=type('Own', (), {}))\n"
        'except KeyError as error: print(error)\n'
        "MODELS.register_module(name=['A', 'B'], module=Own); assert MODELS.get('A') is MODELS.get('B') is Own\n"
    )
    assert 'Own is already registered in model' in printed and 'in configs' not in printed
