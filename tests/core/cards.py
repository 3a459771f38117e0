"""Cards that are not there: a Triton driver that counts launches, and a device whose tensors hold nothing.

Triton's interpreter runs a kernel, but does not compile it; under :class:`CountingDriver` the compiler compiles what
layers would launch, and nothing runs; on :data:`FAKE` the layers' own code runs, with autograd, without values.
"""

import contextlib
from collections.abc import Iterator
from math import prod
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from mmnorm.core import backends

FAKE = 'fakegpu'
# for the whole process, and here, before any backward pass: the first one starts a thread for each kind of device
_setup_privateuseone_for_python_backend(FAKE)
# autocast may be on there, and has no operation to cast the inputs of
getattr(torch, FAKE).get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
_AUTOCAST = torch.library.Library('_', 'IMPL')
_AUTOCAST.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')

# What ATen's CUDA kernels read or write once more than their arguments and results say, in tensors of their input's
# size, and how many they are: statistics come before what is made of them. (in training, in evaluation)
_NORMALIZERS = {
    'native_batch_norm': ((1, 3), (0, 1)),
    'native_batch_norm_backward': ((2, 2), (0, 1)),
    'native_group_norm': ((1, 2), (1, 2)),
    'native_group_norm_backward': ((2, 2), (2, 2)),
    'native_layer_norm': ((0, 1), (0, 1)),
    'native_layer_norm_backward': ((2, 2), (2, 2)),
}
_NO_KERNEL = {'detach', 'alias', 'lift_fresh', '_unsafe_view', 'empty', 'empty_like', 'empty_strided', 'new_empty'}
_ONLY_WRITTEN = {'copy_', 'fill_', 'zero_'}


class Launcher:
    """Notes that a kernel would be launched."""

    def __init__(self, source, metadata):
        self.name = metadata.name

    def __call__(self, *args):
        CountingDriver.launches.append(self.name)


class CountingDriver:
    """What Triton asks of a driver, of a card of some architecture on which nothing runs."""

    launches: list[str] = []
    launcher_cls = Launcher

    def __init__(self, architecture):
        self.architecture, self.utils = architecture, self

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget('cuda', self.architecture, 32)

    def get_current_device(self):
        return self.architecture  # kernels are kept by device

    def get_current_stream(self, device):
        return 0

    def load_binary(self, name, binary, shared, device):
        return name, name, 0, 0, 1024  # module, function, registers, spills, most threads

    def get_device_properties(self, device):
        return dict(max_shared_mem=100 * 1024)


@contextlib.contextmanager
def counting_driver(architecture: int) -> Iterator[list[str]]:
    """Compile for an architecture (90: sm_90) what tensors on the CPU launch; gives the names of what was launched."""
    from triton.runtime import driver

    from mmnorm.core import kernels

    CountingDriver.launches.clear()
    with (
        mock.patch.object(driver, '_active', CountingDriver(architecture)),
        mock.patch.dict(kernels._compiled, clear=True),
        kernels_everywhere(),
    ):
        yield CountingDriver.launches


@contextlib.contextmanager
def kernels_everywhere(checked: bool = True) -> Iterator[None]:
    """Have all devices pass for cards, on which the kernels are checked already, unless they are not to be."""
    with (
        mock.patch.object(backends, '_has_card', lambda x: not x.is_meta),
        mock.patch.object(backends, '_checked', set()),
        mock.patch.object(backends, '_enabled', True),
        mock.patch.object(backends, '_works', (lambda *_: True) if checked else backends._works),
    ):
        yield


class FakeMode(FakeTensorMode):
    """A mode in which tensors have a device, but no memory."""

    avoid_device_init = property(lambda self: True, lambda self, value: None)


@contextlib.contextmanager
def fake_card() -> Iterator[None]:
    """A context in which tensors are made on the fake device, and what would wait for a card raises an error."""
    with FakeMode():
        yield


def on_fake_card(layer: nn.Module, device: str = FAKE) -> nn.Module:
    """The layer with fake tensors, of the fake device or another one, in the place of its own."""
    for module in layer.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device=device)
                    tensors[name] = nn.Parameter(fake) if tensors is module._parameters else fake
    return layer


class Counter(TorchDispatchMode):
    """Counts launches and the traffic of what is as large as a tensor, in units of that tensor; no copy to the CPU."""

    def __init__(self, x):
        super().__init__()
        self.elements, self.size = x.numel(), x.numel() * x.itemsize
        self.units, self.launches, self.kernels, self.collectives = 0.0, 0, [], []

    def add(self, tensors, passes=0, launches=1):
        sizes = [_numel(t) * t.itemsize for t in tensors if t.numel() >= self.elements]
        self.units += sum(sizes) / self.size + passes * max(sizes, default=0) / self.size
        self.launches += launches

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        given, made = ([t for t in tree_leaves(v) if torch.is_tensor(t)] for v in ((args, kwargs), result))
        if any(t.device.type == FAKE for t in given) and any(t.device.type == 'cpu' for t in made):
            raise RuntimeError(f'{function} makes a tensor of the CPU of one of the card')
        if function.namespace == 'c10d':
            self.collectives.append(name)
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not made or name in _NO_KERNEL or is_view:
            return result
        if name in _ONLY_WRITTEN:
            given = given[1:]
        passes, launches = 0, 1
        if name in _NORMALIZERS:
            training = next((a for a in args if isinstance(a, bool)), True)
            passes, launches = _NORMALIZERS[name][0 if training else 1]
            if name.endswith('backward') and args[-1][0] is False:  # only the sums
                passes, launches = 0, 1
        self.add([*given, *made], passes, launches)
        return result


def _numel(tensor):
    """The elements that are in memory: an expanded tensor has fewer than it shows."""
    return prod(size for size, stride in zip(tensor.shape, tensor.stride()) if stride or size == 1)


@contextlib.contextmanager
def kernels_on_fake_card(counter: Counter | None = None) -> Iterator[None]:
    """Have the fake device's tensors take the kernels' way up to their launch, which is counted."""
    from mmnorm.core import kernels

    def launch(kernel, x, constants, programs, *args, **_):
        if counter is not None:
            counter.kernels.append(kernel.__name__)
            counter.add([value for value in args if torch.is_tensor(value)])

    with (
        kernels_everywhere(),
        mock.patch.object(backends, '_is_traced', lambda x: backends.spelled_out()),
        mock.patch.object(kernels, 'launch', launch),
        mock.patch.object(FakeTensor, 'data_ptr', lambda self: 0, create=True),
    ):
        yield
