"""What layers do on a card, without one: run by ``test_kernels.py``, in a process of its own."""

import contextlib
import itertools
import re
import subprocess
from collections import Counter as Tally
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils.checkpoint import checkpoint

from mmnorm.core import Peers
from mmnorm.files import read_json
from mmnorm.norms import NORMS
from mmnorm.norms.whitening import Whitening

from ..norms.cases import EVERY, build, described
from . import budget
from .cards import (
    FAKE,
    Counter,
    CountingDriver,
    Launcher,
    counting_driver,
    fake_card,
    kernels_on_fake_card,
    on_fake_card,
)

LAST = torch.channels_last


@pytest.fixture
def two_ranks():
    """See there."""
    with budget.two_ranks():
        yield


# the compiler

#: Layers of all kinds of rows, by their shape and format: with sizes that allow wide loads, and with others.
WIDE = [
    ((2, 8, 4, 4), torch.contiguous_format),
    ((2, 8, 16, 16), torch.contiguous_format),
    ((1, 2, 64, 64), torch.contiguous_format),
    ((2, 32, 5, 7), LAST),
    ((2, 48, 5, 7), LAST),
]
NARROW = [
    ((2, 8, 7, 7), torch.contiguous_format),
    ((2, 8, 13, 25), torch.contiguous_format),
    ((1, 2, 51, 65), torch.contiguous_format),
    ((2, 27, 5, 7), LAST),
    ((2, 45, 5, 7), LAST),
]
#: How many tiles a kernel loads, the first twice where it takes moments, and how many it stores.
LOADS = {'_moments': 2, '_affine': 1, '_reduce': 2, '_input_gradient': 2}
PLANE = '_over_channels', '_blend', '_gradients_over_channels', '_gradients'
#: Norms whose exchange is written and read by the plane's kernels.
EXCHANGING = 'SyncSN', 'SyncRBN', 'SyncBGN'
STORES = {'_moments': 0, '_affine': 1, '_reduce': 0, '_input_gradient': 1}


def run(cases, dtype, twice=False):
    for shape, layout in cases:
        layer = NORMS['SN'](shape[1])
        for _ in range(2 if twice else 1):
            x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
            layer(x).backward(torch.zeros_like(x))


@pytest.mark.parametrize(
    'architecture, dtypes, wide, narrow',
    [
        (90, (torch.float32, torch.bfloat16), WIDE, NARROW),
        (90, (torch.float16,), WIDE[:1], NARROW[3:4]),
        (80, (torch.float32, torch.bfloat16), WIDE[2:4], NARROW[:1]),
        (70, (torch.bfloat16,), WIDE[:1], NARROW[3:4]),  # a card that does not have this type
    ],
)
def test_every_variant_compiles_without_spills_and_loads_16_bytes_at_once(tmp_path, architecture, dtypes, wide, narrow):
    from mmnorm.core import kernels

    with counting_driver(architecture) as launches:
        for dtype in dtypes:
            run([*wide, *narrow], dtype)
        # four kernels for each of the ways to cut a tensor; what joins sums, where rows are split; and the plane's
        elementwise = [key for key in kernels._compiled if key[0] in LOADS]
        assert len(elementwise) == 4 * len(dtypes) * (len(wide) + len(narrow))
        counts = Tally(launches)
        assert all(counts[name] == len(dtypes) * (len(wide) + len(narrow)) for name in LOADS)
        compiled, before = dict(kernels._compiled), len(launches)
        run([*wide, *narrow], dtypes[0], twice=True)  # by the compiled kernels that were kept
        assert kernels._compiled == compiled
        assert len(launches) - before == 2 * before / len(dtypes)
    for (name, _, dtype, constants, _), kernel in compiled.items():
        check_registers(kernel, name, constants, tmp_path)
        if name in LOADS and constants.unit > 1:
            # of the 16 elements of a tile that each of 128 threads has
            accesses, ptx = dtype.itemsize, kernel.asm['ptx']
            assert ptx.count('ld.global.v4.b32') == LOADS[name] * accesses, (name, dtype, constants)
            assert ptx.count('st.global.v4.b32') == STORES[name] * accesses, (name, dtype, constants)


def check_registers(kernel, name, constants, folder):
    from triton.backends import nvidia

    binary, tool = folder / 'kernel.cubin', Path(nvidia.__file__).with_name('bin') / 'cuobjdump'
    binary.write_bytes(kernel.asm['cubin'])
    usage = subprocess.run([tool, '-res-usage', binary], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf'{what}:(\d+)', usage)[1]) for what in ('REG', 'STACK', 'LOCAL'))
    assert stack == local == 0 and registers <= 128, (name, constants, usage)


@pytest.mark.parametrize(
    'architecture, names', [(90, ['RBN', 'RBN*', 'BGN', 'BRN', 'IBN', *EXCHANGING]), (80, ['RBN', 'BRN', 'SyncSN'])]
)
def test_the_planes_kernels_compile_without_spills(monkeypatch, two_ranks, tmp_path, architecture, names):
    """Of SN they are compiled above."""
    from mmnorm.core import kernels

    monkeypatch.setattr(Peers, '_looks', lambda *_: False)  # at messages that nothing has written
    with counting_driver(architecture):
        for name in names:
            x = torch.zeros(2, 8, 4, 4, requires_grad=True)
            (budget.LAYERS | budget.EXCHANGING)[name](8)(x).backward(torch.zeros_like(x))
        compiled = dict(kernels._compiled)
    assert {key[0] for key in compiled} >= {'_blend', '_gradients', '_tell_statistics', '_tell_gradients'}
    for key, kernel in compiled.items():
        check_registers(kernel, key[0], key[3], tmp_path)


#: Tiles of all channels: of one warp's width and of the most, loaded 16 bytes at once or not.
COLUMNS = [
    ((2, 8, 4, 4), torch.contiguous_format),
    ((2, 64, 7, 7), LAST),
    ((2, 256, 4, 4), torch.contiguous_format),
    ((2, 250, 3, 5), LAST),
    ((2, 1024, 3, 5), LAST),
    ((1, 2048, 4, 4), torch.contiguous_format),
    ((1, 2048, 3, 5), torch.contiguous_format),
    ((2, 2048, 1, 1), LAST),
]


@pytest.mark.parametrize('name', ['PN', 'RBN spatial'])
@pytest.mark.parametrize('architecture, dtypes', [(90, (torch.float32, torch.bfloat16)), (80, (torch.float32,))])
def test_kernels_over_channels_compile_without_spills(tmp_path, name, architecture, dtypes):
    from mmnorm.core import kernels

    with counting_driver(architecture) as launches:
        for dtype, (shape, layout) in itertools.product(dtypes, COLUMNS):
            x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
            budget.LAYERS[name](shape[1])(x).backward(torch.zeros_like(x))
        compiled = dict(kernels._compiled)
    assert len(launches) >= 2 * len(dtypes) * len(COLUMNS)
    for key, kernel in compiled.items():
        check_registers(kernel, key[0], key[3], tmp_path)


def test_two_threads():
    with counting_driver(90) as launches, ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, WIDE[:1] * 5, dtype) for dtype in (torch.float32, torch.float16)]:
            done.result()
    assert Tally(launches) == dict.fromkeys([*LOADS, *PLANE], 10)


def test_each_launch_is_on_the_stream_that_is_current_then(monkeypatch):
    streams = []
    monkeypatch.setattr(Launcher, '__call__', lambda self, x, y, z, stream, *args: streams.append(stream))
    layer, x = NORMS['SN'](8), torch.zeros(2, 8, 4, 4, requires_grad=True)
    with counting_driver(90):
        for stream in (7, 8, 7):  # at first by Triton's own dispatch
            monkeypatch.setattr(CountingDriver, 'get_current_stream', lambda self, device, stream=stream: stream)
            layer(x).backward(torch.zeros_like(x))
            assert streams == [stream] * 8
            streams.clear()


def test_each_launch_is_on_the_device_of_its_tensor(monkeypatch):
    from mmnorm.core import kernels

    current, seen = [0], []

    @contextlib.contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    class Kernel:
        __name__ = 'kernel'

        def __getitem__(self, grid):
            return lambda *args, **kwargs: seen.append(current[-1])

    monkeypatch.setattr(torch.cuda, 'current_device', lambda: current[-1])
    monkeypatch.setattr(torch.cuda, 'device', device)
    for index in (1, 0, 1):
        kernels.launch(Kernel(), mock.Mock(get_device=lambda index=index: index), (), 1)
    assert seen == [1, 0, 1] and current == [0]


def test_a_profiler_is_told_of_each_launch(monkeypatch):
    from triton import knobs

    def launch(self, x, y, z, stream, function, packed, metadata, enter, leave, *args):
        assert (metadata is None) == (enter is None)
        if enter:
            enter(metadata)

    monkeypatch.setattr(Launcher, '__call__', launch)
    layer, x, told = NORMS['SN'](8), torch.zeros(2, 8, 4, 4), []
    with counting_driver(90):
        for _ in range(2):  # of the second pass on compiled kernels are kept
            layer(x)
        assert not told
        knobs.runtime.launch_enter_hook.add(told.append)
        try:
            layer(x)
        finally:
            knobs.runtime.launch_enter_hook.remove(told.append)
    assert [metadata.get()['name'] for metadata in told] == ['_moments', '_over_channels', '_blend', '_affine']


@pytest.mark.parametrize(
    'shape, layout, joins',
    [
        ((2, 8, 7, 7), torch.contiguous_format, 0),
        ((512, 256, 7, 7), torch.contiguous_format, 0),
        ((2, 2048, 25, 42), torch.contiguous_format, 0),
        ((2, 64, 60, 80), torch.contiguous_format, 2),  # few planes of many positions are split
        ((2, 64, 60, 80), LAST, 2),
        ((8, 1024, 30, 40), LAST, 2),
    ],
)
def test_launches_of_a_layer(shape, layout, joins):
    layer = NORMS['SN'](shape[1])
    with fake_card():
        on_fake_card(layer)
        x = torch.empty(shape, device=FAKE).contiguous(memory_format=layout).requires_grad_()
        with Counter(x) as counter, kernels_on_fake_card(counter):
            layer(x).backward(torch.empty_like(x))
    joined = ['_join'] if joins else []
    before, after = PLANE[:2], PLANE[2:]
    assert counter.kernels == ['_moments', *joined, *before, '_affine', '_reduce', *joined, *after, '_input_gradient']


def test_work_is_split_so_that_a_large_card_is_busy():
    from mmnorm.core import kernels

    for shape in ((1, 1, 4096, 4096), (2, 64, 200, 304), (2, 256, 50, 76), (512, 256, 7, 7)):
        for layout in (torch.contiguous_format, LAST):
            x = torch.empty(shape, device='meta', memory_format=layout)
            tiles = kernels.tiling(x)
            programs, (*_, length, _, splits, count) = kernels.sizes(x.shape, tiles, True)
            assert splits <= 256 and (splits - 1) * count * tiles.columns < length <= splits * count * tiles.columns
            assert programs >= 256, (shape, layout)  # two for each multiprocessor


# every layer


def test_the_fake_card_notices_what_a_card_would_mind():
    with fake_card(), Counter(x := torch.empty(3, device=FAKE)):
        for wait in (x.sum().item, x.tolist, lambda: bool(x.sum() > 0)):
            with pytest.raises(DataDependentOutputException):
                wait()
        with pytest.raises(RuntimeError, match='makes a tensor of the CPU'):
            x.cpu()
        with pytest.raises(RuntimeError, match='device'):
            x + torch.empty(3)


def ways(cfg):
    """A layer in training, one in evaluation and, where it may be, a frozen one."""
    evaluated = dict(batch_size=4, **cfg) if cfg['type'].endswith('EN') and 'batch_size' not in cfg else cfg
    norms = [build(cfg).train(), build(evaluated).eval()]
    if cfg['type'] != 'FrozenBN':
        norms.append(build(dict(evaluated, frozen=True)))
    return norms


def move(norms, device=FAKE):
    """Make fakes of layers that were built on values."""
    for norm in norms:
        on_fake_card(norm, device)
        if getattr(norm, 'hard', False):  # which looked at its weights' values, of which there are none here
            norm._picked_from = norm._weights_seen()


def check_all_is_on_the_card(norms):
    for norm in norms:
        for value in [*norm.state_dict().values(), *(p.grad for p in norm.parameters() if p.grad is not None)]:
            assert value.device.type == FAKE


@pytest.mark.parametrize('by_kernels', [False, True])
@pytest.mark.parametrize('cfg', EVERY, ids=described)
def test_every_layer_stays_on_its_card(by_kernels, cfg):
    """No tensor of another device, nothing that waits for the card, and results as the input is."""
    norms = ways(cfg)
    with fake_card(), kernels_on_fake_card() if by_kernels else contextlib.nullcontext():
        move(norms)
        for norm, (dtype, layout), autocast in itertools.product(
            norms, [(torch.float32, torch.contiguous_format), (torch.bfloat16, LAST)], (False, True)
        ):
            x = torch.empty(4, 8, 3, 5, dtype=dtype, device=FAKE).contiguous(memory_format=layout).requires_grad_()
            with Counter(x), torch.autocast(FAKE, torch.bfloat16, enabled=autocast):
                y = norm(x)
                y.backward(torch.empty_like(y))
                with torch.no_grad():
                    again = norm(x)
            for result in (y, x.grad, again):
                assert (result.device, result.dtype, result.stride()) == (x.device, dtype, x.stride())
    check_all_is_on_the_card(norms)


@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize('cfg', EVERY, ids=described)
def test_checkpointing_keeps_every_layer_on_its_card(reentrant, cfg):
    norms = ways(cfg)
    with fake_card(), kernels_on_fake_card():
        move(norms)
        for norm in norms:
            x = torch.empty(4, 8, 3, 5, device=FAKE).requires_grad_()
            # these look up by their statistics' values which pass is computed again, and wait for them
            waits = (cfg['type'] == 'BRN' or 'estimate' in cfg) and norm.training
            with (
                Counter(x),
                torch.autocast(FAKE, torch.bfloat16),
                pytest.raises(DataDependentOutputException) if waits else contextlib.nullcontext(),
            ):
                y = checkpoint(norm, x, use_reentrant=reentrant, preserve_rng_state=False)
                y.backward(torch.empty_like(y))
                assert (x.grad.device, x.grad.dtype, x.grad.stride()) == (x.device, x.dtype, x.stride())
    check_all_is_on_the_card(norms)


@pytest.mark.parametrize('cfg', EVERY, ids=described)
def test_a_layer_on_another_device_than_its_input_is_a_clear_error(cfg):
    norms = ways(cfg)
    with fake_card(), kernels_on_fake_card():
        move(norms, 'cpu')
        for norm in norms:
            x = torch.empty(4, 8, 3, 5, device=FAKE).requires_grad_()
            with pytest.raises(RuntimeError, match=f'(?=.*{FAKE})(?=.*cpu)'):
                norm(x)


@pytest.mark.parametrize('dtype, layout', [(torch.float32, torch.contiguous_format), (torch.bfloat16, LAST)])
@pytest.mark.parametrize('name', [name for name in NORMS if name.startswith('Sync')])
def test_ranks_meet_once_each_way_and_nobody_waits(two_ranks, name, dtype, layout):
    """Neither for the card, in the first evaluation after a training included, nor more often for the other rank."""
    norm = NORMS[name](8)
    with fake_card():
        on_fake_card(norm)
        for _ in range(2):
            norm.zero_grad()
            x = torch.empty(4, 8, 3, 5, dtype=dtype, device=FAKE).contiguous(memory_format=layout).requires_grad_()
            with Counter(x) as forward, kernels_on_fake_card(forward):
                y = norm(x)
            with Counter(x) as backward, kernels_on_fake_card(backward):
                y.backward(torch.empty_like(y))
            assert forward.collectives == ['_allgather_base_'] and backward.collectives == ['allreduce_']
            # those that whiten multiply matrices, whose traffic the budget has
            assert forward.units + backward.units == 8 or isinstance(norm, Whitening)
            if name in EXCHANGING:
                over_channels = ['_over_channels'] if name != 'SyncRBN' else []
                told, answered = ['_tell_statistics'], ['_tell_gradients']
                first = [*told, *over_channels] if name == 'SyncSN' else [*over_channels, *told]
                gradients = [f'_gradients{kernel}' for kernel in over_channels]
                last = [*answered, *gradients] if name == 'SyncSN' else [*gradients, *answered]
                assert forward.kernels == ['_moments', *first, '_blend', '_affine']
                assert backward.kernels == ['_reduce', *last, '_gradients', '_input_gradient']
                assert forward.launches == len(forward.kernels) + 1 and backward.launches == len(backward.kernels) + 1
            for result in (y, x.grad):
                assert (result.device, result.dtype, result.stride()) == (x.device, dtype, x.stride())
        with Counter(x) as counter, kernels_on_fake_card(counter), torch.no_grad():
            norm.eval()(x)
        assert not counter.collectives
    check_all_is_on_the_card([norm])


@pytest.fixture
def kept():
    found = read_json(budget.PATH)
    if torch.__version__.partition('+')[0] != found['torch']:
        pytest.skip(f'it was counted with PyTorch {found["torch"]}')
    return found


def test_the_budget_is_kept(kept):
    """``python -m tests.core.budget`` writes it; what is worse there than before is to be explained with the change."""
    assert budget.lines(budget.counts()) == budget.lines(kept['counts'])


@pytest.mark.parametrize('name', ['nn.BatchNorm2d', 'SN', 'IBN'])
def test_the_budget_of_compiled_layers_is_kept(kept, name):
    """Of some, each of which takes seconds."""
    assert budget.measure_compiled(name, 'bfloat16') == kept['compiled'][name]['bfloat16 compiled']
