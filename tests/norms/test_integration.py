"""Promises 6 and 10 against the tools that people use: compilers, exporters, checkpointing, hosts."""

import copy
import io

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.models.roi_heads.shared_heads import ResLayer
from mmengine.analysis import get_model_complexity_info
from mmengine.registry import DefaultScope
from torch import nn

from mmnorm import compile_norms, norms
from mmnorm.norms import NORMS, harden

from ..conftest import ROOT
from .cases import CHANNELS, build, described, randomized

pytestmark = [pytest.mark.filterwarnings(f'ignore::{kind}') for kind in ('UserWarning', 'DeprecationWarning')]
SHAPES = (4, CHANNELS, 4, 6), (3, CHANNELS, 10, 12)
# the variants whose operations differ from those of the plain names
EXPORTED = [dict(type=name) for name in NORMS if not name.startswith('Sync')] + [
    dict(type='SN', groups=2),
    dict(type='SN', hard=True),
    dict(type='RBN', scale_stat='channel_std'),
    dict(type='RBN', center_stat='spatial_mean', scale_stat='spatial_std'),
    dict(type='EN', batch_size=2),
    dict(type='BGN', num_groups=4),
    dict(type='BGN', num_groups=16),
    dict(type='BGN', num_groups=7),
    dict(type='GBGN', batch_groups='sample', channel_groups=2),
]


def evaluating(cfg):
    layer = randomized(build(cfg))
    with torch.enable_grad():  # a training, by which EN learns its batch size
        layer(torch.randn(SHAPES[0]))
    return layer.eval()


def dynamic():
    return {axis: torch.export.Dim(name, min=2) for axis, name in ((0, 'batch'), (2, 'height'), (3, 'width'))}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@torch.no_grad()
def test_compiles_for_evaluation_without_a_graph_break(cfg):
    layer = evaluating(cfg)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True, dynamic=True)
    for shape in SHAPES:
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_en_that_knows_no_batch_size_compiles():
    layer = randomized(build(dict(type='EN'))).eval()
    x = torch.randn(SHAPES[0])
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


def test_compiled_training_equals_eager(cfg):
    eager = randomized(build(cfg)).train()
    ours = copy.deepcopy(eager)
    compiled = torch.compile(ours, backend='aot_eager')
    for seed in range(2):
        x = torch.randn(SHAPES[0], generator=torch.Generator().manual_seed(seed))
        inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
        for layer, value in zip((compiled, eager), inputs):
            layer(value).square().sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-3)
    for (name, p), q in zip(ours.named_parameters(), eager.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-2, msg=name)
    for key, value in eager.state_dict().items():
        if key not in ('alpha', 'beta', 'squared_gradients'):  # a sign in EN's estimation may turn by rounding
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('training', [True, False])
def test_compiled_norms_of_all_widths_and_sizes_share_their_graphs(cfg, training):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    widths = (64, 128, 256, 512, 1024, 2048)
    network = nn.ModuleList(build(cfg, width) for width in widths).train(training)
    assert len(compile_norms(network, backend=count)) == len(widths)
    shapes = [(2, 8, 9), (3, 9, 10), (4, 5, 6), (5, 7, 4)]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), torch.set_grad_enabled(training):
        for layer, width in zip(network, widths):
            for n, *size in shapes:
                layer(torch.randn(n, width, *size))
    # where the groups of a layer are as many as its channels, or of unequal sizes, the operations are others; a step of
    # EN's estimation is not compiled, so that there are graphs before and after it
    assert 1 <= len(graphs) <= (8 if cfg.get('mode') == 'online' else 4)


@pytest.mark.parametrize(
    'hardened_cfg', [dict(type='SN', hard=True), dict(type='SN', groups=2, hard=True)], ids=described
)
@torch.no_grad()
def test_hardened_layers_are_exported_and_compiled_before_any_forward(hardened_cfg):
    def hardened():
        layer = randomized(build({**hardened_cfg, 'hard': False})).eval()
        harden(layer)
        return layer

    def loaded():
        layer = build(hardened_cfg).eval()
        layer.load_state_dict(hardened().state_dict())
        return layer

    x = torch.randn(SHAPES[0])
    for make in (hardened, loaded):
        layer = make()
        exported = torch.export.export(layer, (x,), dynamic_shapes=(dynamic(),)).module()
        torch.testing.assert_close(exported(x), copy.deepcopy(layer)(x), rtol=1e-4, atol=1e-4)
        layer = make()
        compiled = torch.compile(layer, backend='aot_eager', fullgraph=True, dynamic=True)
        torch.testing.assert_close(compiled(x), copy.deepcopy(layer)(x), rtol=1e-4, atol=1e-4)
        target = io.BytesIO()
        layer = make()
        torch.onnx.export(layer, (x,), target, dynamo=False)
        assert target.getvalue()


@torch.no_grad()
def test_torch_export_of_any_image_size(cfg):
    layer = evaluating(cfg)
    program = torch.export.export(layer, (torch.randn(SHAPES[0]),), dynamic_shapes=(dynamic(),))
    for shape in SHAPES:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_torch_export_of_a_network_that_has_the_layer(cfg):
    network, x = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), evaluating(cfg)).eval(), torch.randn(SHAPES[0])
    expected = network(x)
    for strict in (True, False):
        exported = torch.export.export(network, (x,), strict=strict).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('exporter', ['dynamo', 'torchscript', 'torchscript, opset 11'])
@pytest.mark.parametrize('exported_cfg', EXPORTED, ids=described)
def test_onnx_of_any_image_size_equals_pytorch(exported_cfg, exporter, tmp_path, capsys):
    layer = evaluating(exported_cfg)
    example = (torch.randn(SHAPES[0]),)
    if exporter == 'dynamo':
        torch.onnx.export(layer, example, dynamic_shapes=(dynamic(),), dynamo=True).save(tmp_path / 'norm.onnx')
        model = (tmp_path / 'norm.onnx').read_bytes()
    else:
        target = io.BytesIO()
        torch.onnx.export(
            layer,
            example,
            target,
            input_names=['x'],
            dynamo=False,
            opset_version=11 if exporter.endswith('11') else None,
            dynamic_axes=dict(x={0: 'batch', 2: 'height', 3: 'width'}),
        )
        model = target.getvalue()
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    for shape in SHAPES:
        x = torch.randn(shape)
        with torch.no_grad():
            expected = layer(x)
        (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_activation_checkpointing_gives_the_same_gradients(cfg):
    torch.manual_seed(0)
    plain = ResNet(
        18,
        base_channels=CHANNELS,
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        norm_cfg=cfg,
        norm_eval=False,
    )
    saving = copy.deepcopy(plain)
    for module in saving.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = True
    inputs = [torch.randn(2, 3, 32, 32).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    for model, x in zip((plain, saving), inputs):
        model(x)[0].square().mean().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-5)


def running_statistics(model):
    return {key: value.clone() for key, value in model.state_dict().items() if 'running' in key or 'tracked' in key}


@pytest.mark.parametrize('name', NORMS)
def test_norm_eval_holds_statistics_in_backbones_and_c4_heads(name):
    backbone = ResNet(
        18,
        base_channels=8,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        norm_cfg=dict(type=name),
        norm_eval=True,
    )
    head = ResLayer(50, stage=1, style='pytorch', norm_cfg=dict(type=name), norm_eval=True)
    for model, x in ((backbone, torch.randn(2, 3, 32, 32)), (head, torch.randn(2, 256, 8, 8))):
        model.train()
        before = running_statistics(model)
        sum(out.sum() for out in model(x)).backward()
        after = running_statistics(model)
        assert all(torch.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize('name', NORMS)
def test_trains_under_autocast(name):
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3), build(dict(type=name)), nn.ReLU(inplace=True), nn.Conv2d(CHANNELS, 1, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    x, losses = torch.randn(4, 3, 12, 12), []
    for _ in range(5):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = model(x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize('name', NORMS)
def test_complexity_is_counted(name):
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), build(dict(type=name))).eval()
    with torch.no_grad():
        found = get_model_complexity_info(model, (3, 16, 16), show_table=False, show_arch=False)
    assert found['flops'] >= 3 * CHANNELS * 9 * 14 * 14
    assert found['params'] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('name', NORMS)
def test_hosts_build_and_run_a_model_with_it_everywhere(name, digits_config):
    from mmdet.apis import inference_detector, init_detector
    from mmengine.config import Config

    cfg = Config.fromfile(digits_config())
    norm_cfg = dict(type=name, requires_grad=True)
    cfg.model.backbone.update(norm_cfg=norm_cfg, norm_eval=False)
    cfg.model.neck.norm_cfg = cfg.model.roi_head.mask_head.norm_cfg = norm_cfg
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = init_detector(cfg, device='cpu')
        kind = name if not name.startswith('Sync') else name.removeprefix('Sync')
        assert any(type(m).__name__ == kind for m in model.modules())
        result = inference_detector(model, np.zeros((64, 64, 3), np.uint8))
    assert result.pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize('name', NORMS)
def test_mmseg_builds_and_runs_a_model_with_it_everywhere(name):
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    cfg = Config.fromfile(ROOT / 'configs/pspnet_xbn_r50_digits.py')
    norm_cfg = dict(type=name, requires_grad=True)
    cfg.model.backbone.update(norm_cfg=norm_cfg, norm_eval=False)
    cfg.model.decode_head.norm_cfg = norm_cfg
    # PSPNet pools to one position, where IBN has nothing to normalize an instance by
    cfg.model.decode_head.pool_scales = (2, 3)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = init_model(cfg, device='cpu')
        assert sum(isinstance(m, getattr(norms, name)) for m in model.modules()) > 20
        result = inference_model(model, np.zeros((64, 64, 3), np.uint8))
    assert result.pred_sem_seg.data.shape == (1, 64, 64)
