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


@pytest.mark.parametrize('missing, present', [('mmseg', 'mmdet'), ('mmdet', 'mmseg')])
def test_imports_without_a_host_and_says_what_is_left_out(missing, present):
    code = (f'import sys; sys.modules[{missing!r}] = None; import mmnorm; '
            f'from {present}.registry import MODELS; assert MODELS.get("XBNResNet") and MODELS.get("SN")')
    done = subprocess.run([sys.executable, '-c', code], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    left_out = ', '.join(name for names in registry.HOST_MODELS[missing].values() for name in names)
    assert f'{missing} is not installed, left out: {left_out}' in done.stdout
