"""Configs elsewhere on disk that inherit from mmdet or mmseg train with those projects' own tools."""

from pathlib import Path

import mmdet
import mmseg
import pytest

MMDET, MMSEG = (Path(host.__file__).parent / '.mim' for host in (mmdet, mmseg))
IMPORT = "custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)\n"

DETECTION = (
    IMPORT
    + """
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = {model}
data = dict(data_root='{digits}/coco/', metainfo=dict(classes=tuple('0123456789')), indices=2)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    filter_cfg=None, pipeline=[dict(type='LoadImageFromFile'),
                               dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                               dict(type='PackDetInputs', meta_keys=('img_id', 'img_shape'))], **data))
train_cfg = dict(max_epochs=1, val_interval=10)
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None
"""
)

SEGMENTATION = (
    IMPORT
    + """
_base_ = ['{mmseg}/configs/pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py']
model = dict({model}, data_preprocessor=dict(size=(64, 64)))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    type='BaseSegDataset', data_root='{digits}/ade', reduce_zero_label=True,
    metainfo=dict(classes=('background', *'0123456789')),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
              dict(type='PackSegInputs')]))
train_cfg = dict(max_iters=1, val_interval=10)
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None
"""
)

# One changed key each; init_cfg and pretrained only because no weights can be downloaded here, and what mmseg pads to
# only for the time that it takes. Stock detectors carry
# norm_eval=True, of which the user is told; stock segmenters do not.
PROJECTS = {
    'mmdet-XBNResNet': (
        MMDET,
        DETECTION,
        "dict(backbone=dict(type='XBNResNet', init_cfg=None))",
        'XBNResNet has norm_eval=True',
    ),
    'mmdet-SN': (
        MMDET,
        DETECTION,
        "dict(backbone=dict(norm_cfg=dict(type='SN'), init_cfg=None))",
        'SN is in evaluation mode while the network trains',
    ),
    'mmseg-XBNResNetV1c': (MMSEG, SEGMENTATION, "dict(backbone=dict(type='XBNResNetV1c'), pretrained=None)", None),
    'mmseg-XBNResNet': (MMSEG, SEGMENTATION, "dict(backbone=dict(type='XBNResNet'), pretrained=None)", None),
    'mmseg-RBN': (MMSEG, SEGMENTATION, "dict(backbone=dict(norm_cfg=dict(type='RBN')), pretrained=None)", None),
}


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize('name', PROJECTS)
def test_trains_a_step_with_the_hosts_own_tool(name, forked_tool, digits, tmp_path):
    host, template, model, told = PROJECTS[name]
    config = tmp_path / 'project.py'
    config.write_text(template.format(model=model, digits=digits, mmseg=MMSEG))
    done = forked_tool(str(host / 'tools/train.py'), config)
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'Saving checkpoint at 1' in done.stdout
    for message in filter(None, {told for *_, told in PROJECTS.values()}):
        assert done.stdout.count(message) == (message == told), message
