import pytest
import torch
from mmdet.registry import MODELS as DET

from mmnorm.norms import PlaneNorm

R18 = dict(type='ResNet', depth=18, base_channels=8)


@pytest.mark.parametrize('norm', ['EN', 'BN'])
def test_pretrained_without_norms_loads_all_but_them(tmp_path, norm):
    torch.manual_seed(0)
    trained = DET.build(R18)
    for parameter in [*trained.parameters(), *(b for b in trained.buffers() if b.is_floating_point())]:
        torch.nn.init.uniform_(parameter, 2, 3)
    checkpoint = str(tmp_path / 'bn.pth')
    torch.save(trained.state_dict(), checkpoint)

    backbone = DET.build(
        dict(R18, norm_cfg=dict(type=norm), init_cfg=dict(type='PretrainedWithoutNorms', checkpoint=checkpoint))
    )
    initial = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.init_weights()

    theirs, norms = trained.state_dict(), 0
    for name, value in backbone.state_dict().items():
        is_norm = 'bn' in name or 'downsample.1' in name
        assert torch.equal(value, initial[name] if is_norm else theirs[name]), name
        norms += is_norm and name.endswith('.weight')
    assert norms == 20
    assert any(isinstance(layer, PlaneNorm) for layer in backbone.modules()) == (norm == 'EN')
    assert all((layer.weight == 1).all() for layer in backbone.modules() if hasattr(layer, 'running_mean'))
