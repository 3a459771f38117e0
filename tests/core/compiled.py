"""What torch.compile makes of a layer for a card that is not there: inductor's plan for it, counted and not run."""

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from unittest import mock

import torch
from torch import nn
from torch._functorch.aot_autograd import aot_module_simplified, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

SHAPE = 2, 64, 160, 160
_CARD = torch.device('cuda', 0)
_H100 = DeviceProperties('cuda', 0, 132, 90, 9, 65536, 2048, 1024, 32)


def measure(layer: nn.Module, dtype: torch.dtype) -> dict[str, list]:
    """Units (elements of the input, read or written once) and kernels of a compiled layer, as inductor plans them."""
    x, found = torch.zeros(SHAPE, dtype=dtype, requires_grad=True), {}
    for mode in ('training', 'evaluation'):
        torch._dynamo.reset()
        layer.train(mode == 'training')
        plans: list[tuple[int, int]] = []
        with _inductor_for_a_card(), torch.set_grad_enabled(mode == 'training'):
            y = torch.compile(layer, backend=partial(_backend, plans))(x)
            if y.requires_grad:
                y.backward(torch.zeros_like(y))
        size, kernels = (sum(numbers) for numbers in zip(*plans)) if plans else (0, 0)
        found[mode] = [round(size / x.numel() / x.itemsize, 1), kernels]
    return found


@contextlib.contextmanager
def _inductor_for_a_card() -> Iterator[None]:
    with (
        mock.patch.object(DeviceProperties, 'create', lambda device: _H100),
        mock.patch('torch._inductor.scheduler.has_triton', lambda *_: True),
        mock.patch('torch.cuda.current_device', lambda: 0),
        mock.patch('torch.cuda.get_device_capability', lambda *_: (9, 0)),
    ):
        yield


def _backend(plans, graph, inputs):
    """Graphs run as they are, on the CPU; what inductor would make of each of them is noted."""

    def compiler(graph, inputs):
        plans.append(_plan(copy.deepcopy(graph), inputs))
        return make_boxed_func(graph.forward)

    def partition(joint, *args, **kwargs):
        joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, *args, compiler='inductor', **kwargs)

    return aot_module_simplified(
        graph, inputs, fw_compiler=compiler, partition_fn=partition, decompositions=select_decomp_table()
    )


def _plan(graph, inputs):
    """Bytes that the kernels of a graph move on a card, and their number."""
    for node in graph.graph.nodes:
        if 'device' in node.kwargs:
            node.kwargs = {**node.kwargs, 'device': _CARD}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=_CARD) if torch.is_tensor(t) else t
            for t in inputs
        ]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)
    lowering = GraphLowering(graph)
    with V.set_graph_handler(lowering), V.set_fake_mode(mode), V.set_debug_handler(mock.MagicMock()):
        lowering.run(*fakes)
        lowering._update_scheduler()
        return lowering.count_bytes()[0], len(lowering.scheduler.nodes)
