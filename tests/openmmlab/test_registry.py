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


@pytest.mark.parametrize('host, models', [('mmdet', DET), ('mmseg', SEG)])
def test_models_are_in_their_hosts_registry(host, models):
    for module, names in registry.HOST_MODELS[host].items():
        for name in names:
            assert models.get(name).__module__ == module


def in_a_new_process(code):
    """What a Python program prints; it must not fail."""
    done = subprocess.run([sys.executable, '-c', code], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize('missing, present', [('mmseg', 'mmdet'), ('mmdet', 'mmseg')])
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
        'heavy = "mmdet.models", "mmseg.models", "mmcv.ops", "mmdet.datasets", "matplotlib", "pandas", "sklearn"\n'
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
