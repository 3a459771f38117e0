"""mmdet's and mmseg's own inference, FLOPs and benchmark tools work on our models."""

from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.utils.benchmark import InferenceBenchmark
from mmengine.config import Config
from mmengine.model import BaseModel
from mmseg.apis import inference_model, init_model
from torch import nn

from tests.conftest import ROOT

IMAGE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def checkpoint(digits_config, tmp_path):
    config = digits_config()
    model = init_detector(str(config), device='cpu')
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=tuple('0123456789')))), path)
    return config, path


def test_init_detector_and_inference_on_a_cpu(checkpoint):
    config, path = checkpoint
    model = init_detector(str(config), str(path), device='cpu')
    assert type(model.backbone).__name__ == 'XBNResNet' and not model.training
    result = inference_detector(model, IMAGE)
    assert result.pred_instances.masks.shape[1:] == (64, 64)


def test_init_model_and_inference_on_a_cpu():
    model = init_model(str(ROOT / 'configs/pspnet_xbn_r50_digits.py'), device='cpu')
    assert type(model.backbone).__name__ == 'XBNResNetV1c'
    assert inference_model(model, IMAGE).pred_sem_seg.data.shape == (1, 64, 64)


def test_flops(forked_tool, checkpoint):
    config, _ = checkpoint
    script = Path(mmdet.__file__).parent / '.mim/tools/analysis_tools/get_flops.py'
    done = forked_tool(str(script), config, '--num-images', 1)
    assert done.returncode == 0 and 'Flops: ' in done.stdout and 'Params: ' in done.stdout, done.stdout[-2000:]


def test_benchmark_with_fused_bns(checkpoint, tmp_path, monkeypatch):
    # the tool moves its model to a GPU whatever the machine has
    monkeypatch.setattr(BaseModel, 'cuda', lambda self, device=None: self)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr('mmdet.utils.benchmark.get_max_cuda_memory', lambda: 0)
    config, path = checkpoint
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.indices = 4
    benchmark = InferenceBenchmark(cfg, str(path), distributed=False, is_fuse_conv_bn=True, max_iter=4, num_warmup=1)
    assert benchmark.run(1)['avg_fps'] > 0
    kinds = {type(m) for m in benchmark.model.modules()}
    assert nn.GroupNorm in kinds and nn.BatchNorm2d not in kinds
