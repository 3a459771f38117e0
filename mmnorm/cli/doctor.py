"""Examine this machine: what is installed, whether every norm computes what it should here, and what it costs.

Each norm of mmnorm runs in training and evaluation, in every type and memory format that the device has, and is
compared with itself in float64 on the CPU; Sync norms also on two ranks. Then it is timed beside BatchNorm, GroupNorm
and a plain copy, on the feature maps of a detector, a segmentation network and a head on RoIs. Prints tables and writes
doctor.json. With --step it trains Mask R-CNN R-50 with each norm everywhere too. Exits with 1 if something is wrong.
"""

import copy
import itertools
import math
import shutil
import statistics
import tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from .arguments import positive
from .benchmark import BN, PASSES, build, machine, prepare, time_layers, time_model

EXAMPLE = 'mmnorm doctor --step'
SEED = 0
# Of a Mask R-CNN on two images of 800 x 1333 (its second and last stage), of a DeepLab on four, and of 512 RoIs
SHAPES = ((2, 256, 200, 336), (2, 2048, 25, 42), (4, 512, 97, 97), (512, 256, 7, 7))
SMALL = ((2, 256, 50, 84), (512, 64, 7, 7))  # for a CPU
STEP_SIZE = (800, 1333)
PROBE = (3, 64, 9, 7)
RANKS = 2
#: The largest relative error in the 2-norm that is right, by type: a few roundings of input and output, and in float32
#: of the differences that a gradient is.
LIMITS = dict(float32=1e-4, float16=5e-3, bfloat16=4e-2)
_OF_NO_INTEREST = ('sys.platform', 'numpy_random_seed', 'PyTorch', 'PyTorch compiling details', 'MMEngine')


def add_arguments(parser):
    parser.add_argument('--device', help='default: cuda if there is one, else cpu')
    parser.add_argument('--norms', nargs='+', metavar='NAME', help='registered names (default: all)')
    parser.add_argument('--no-timing', action='store_true', help='only what is installed, and whether it is right')
    parser.add_argument('--step', action='store_true', help='also time training steps of Mask R-CNN R-50')
    parser.add_argument('--rounds', type=positive, default=10, metavar='N', help='to time over (default: %(default)s)')
    parser.add_argument('--out', default='work_dirs/doctor', metavar='DIR', help='default: %(default)s')


def run(args):
    """Examine, and write what was found."""
    device = prepare(args)
    from tabulate import tabulate

    from mmnorm.files import check_writable, write_json
    from mmnorm.terminal import command

    check_writable(args.out)
    about, problems = installed(device)
    print(tabulate(about.items(), ['', 'found'], maxcolwidths=[None, 90]), flush=True)

    rows = list(examine(args.norms, device))
    print(f'\n{len(rows)} norms in training and evaluation against float64 on the CPU: largest relative error')
    print(tabulate([{'': row['norm'], **row['errors']} for row in rows], 'keys', floatfmt='.0e'), flush=True)
    ranks = on_two_ranks(args.norms, device)
    if isinstance(ranks, str):
        print(f'\nTwo ranks: not tried ({ranks})')
    else:
        print('\nSync norms on two ranks, of 3 images and 1, against float64 on one: largest relative error')
        print(tabulate(ranks, 'keys', floatfmt='.0e'), flush=True)
        rows += ranks
    problems += [problem for row in rows for problem in row.get('problems', ())]

    result = dict(installed=about, errors=rows)
    if not args.no_timing:
        result['times'] = cost(args, device)
    if args.step:
        result['steps'] = steps(args, device)
    path = Path(args.out, 'doctor.json')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(result, problems=problems))
    print(f'\n{path}')
    for problem in problems:
        print(f'problem: {problem}')
    print(f'{len(problems)} problems found' if problems else f'All is well; {command("benchmark")} times more closely')
    return 1 if problems else 0


def installed(device):
    """What there is on this machine (dict[str, str]), and what is wrong with it (list[str])."""
    import torch
    from mmcv.utils import collect_env

    from mmnorm.engine import versions

    env = {key: value for key, value in collect_env().items() if key not in _OF_NO_INTEREST}
    found = {**env, **versions(), 'threads': torch.get_num_threads(), 'seed': SEED}
    if device.type == 'cuda':
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            memory = f'{card.total_memory / 2**30:.0f} GiB'
            found[f'cuda:{index}'] = f'{card.name}, compute capability {card.major}.{card.minor}, {memory}'
        if torch.distributed.is_nccl_available():
            found['NCCL'] = '.'.join(map(str, torch.cuda.nccl.version()))
    else:
        found['processor'] = machine(device, torch.get_num_threads())['device']
    found['Triton'] = str(getattr(_module('triton'), '__version__', 'none'))
    found['C compiler'] = next(filter(None, map(shutil.which, ('cc', 'gcc', 'clang'))), 'none')
    problems = []
    try:
        found["mmcv's operators"] = try_operators(device)
    except Exception as error:  # of a build without them, or for other devices
        found["mmcv's operators"] = 'none that work'
        build = 'MMCV_WITH_OPS=1' + ', FORCE_CUDA=1 and TORCH_CUDA_ARCH_LIST' * (device.type == 'cuda')
        problems.append(
            f"mmcv's operators do not work on {device}, so that detectors cannot run there "
            f'({type(error).__name__}: {str(error).splitlines()[0]}). Build mmcv again with {build} set'
        )
    return found, problems


def _module(name):
    try:
        return import_module(name)
    except Exception:  # of what is installed, but not for this machine
        return None


def try_operators(device):
    """Run the operators of mmcv that Faster and Mask R-CNN need; returns their names (str)."""
    import torch
    from mmcv.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [5, 5, 9, 9]], device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    features = torch.ones(1, 1, 10, 10, device=device)
    pooled = roi_align(features, torch.tensor([[0.0, 0, 0, 4, 4]], device=device), 2, 1.0, 2)
    if kept.tolist() != [0, 2] or not torch.allclose(pooled, torch.ones_like(pooled)):
        raise RuntimeError('NMS or RoIAlign gives a wrong result')
    return 'nms, roi_align'


def kinds(device):
    """Types and memory formats to try: pairs of a dtype and whether it is channels last."""
    import torch

    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    if device.type == 'cuda' and not torch.cuda.is_bf16_supported(including_emulation=False):
        dtypes.remove(torch.bfloat16)
    return list(itertools.product(dtypes, (False, True)))


def examine(names, device):
    """Compare every norm on a device with itself in float64 on the CPU.

    Args:
        names (list[str] or None): Which; default: all of mmnorm.
        device (torch.device): Where.

    Yields:
        dict: ``norm``, ``errors`` (of each type and format, the largest relative error in the 2-norm of outputs,
        gradients and statistics in training and evaluation), ``problems`` (list[str]).
    """
    from mmnorm.norms import NORMS
    from mmnorm.terminal import progress

    tried = kinds(device)
    for name in progress(list(names or NORMS), 'examining'):
        row = dict(norm=name, errors={}, problems=[])
        for dtype, channels_last in tried:
            kind = f'{str(dtype).removeprefix("torch.")}{", channels last" if channels_last else ""}'
            try:
                error = max(_error(name, dtype, channels_last, training, device) for training in (True, False))
            except Exception as failure:  # whatever a kernel or an operator raises here
                row['errors'][kind] = math.nan
                row['problems'].append(f'{name}, {kind}: {type(failure).__name__}: {str(failure).splitlines()[0]}')
                continue
            row['errors'][kind] = error
            if not error <= LIMITS[str(dtype).removeprefix('torch.')]:
                row['problems'].append(f'{name}, {kind}: off by {error:.1e} of float64')
        yield row


def _error(name, dtype, channels_last, training, device):
    import torch

    torch.manual_seed(SEED)
    layer = randomized(build(name, PROBE[1])).train(training)
    x, grad = (torch.randn(PROBE) * 2 + 1).to(dtype), torch.randn(PROBE).to(dtype)
    expected = passed(copy.deepcopy(layer).double(), x.double(), grad.double())
    form = torch.channels_last if channels_last else torch.contiguous_format
    on_device = (value.to(device).contiguous(memory_format=form) for value in (x, grad))
    return largest_error(passed(layer.to(device), *on_device), expected)


def randomized(layer):
    """The layer with other parameters and statistics than those it starts from, which would hide half of it."""
    import torch

    with torch.no_grad():
        for value in layer.parameters():
            value.add_(torch.randn_like(value) / 4)
        for name, value in layer.named_buffers():
            if name.endswith('running_mean'):
                value.normal_()
            elif name.endswith('running_var'):
                value.uniform_(0.5, 2)
    return layer


def passed(layer, x, grad):
    """Output, gradients and running statistics of one forward and backward pass (list[Tensor])."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(grad)
    statistics_ = [value for name, value in layer.named_buffers() if 'running' in name]
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None), *statistics_]


def largest_error(found, expected):
    """The largest relative error, in the 2-norm, of tensors (float)."""
    import torch

    errors = []
    for value, right in zip(found, expected, strict=True):
        norm = torch.linalg.vector_norm
        errors.append(float(norm(value.double().cpu() - right) / norm(right).clamp(min=1e-30)))
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def on_two_ranks(names, device):
    """Compare Sync norms on two ranks, of unequal shares of a batch, with float64 on one process.

    Args:
        names (list[str] or None): Which norms; those that do not synchronize are left out. Default: all of mmnorm.
        device (torch.device): CUDA: NCCL on two cards; else gloo.

    Returns:
        list[dict] or str: As of :func:`examine`; or why it was not tried.
    """
    import torch
    from torch import distributed

    from mmnorm.files import read_json
    from mmnorm.norms import NORMS

    names = [name for name in names or NORMS if name.startswith('Sync')]
    if not names:
        return 'no norm that synchronizes was asked for'
    if not distributed.is_available():
        return 'this PyTorch has no torch.distributed'
    if device.type == 'cuda' and torch.cuda.device_count() < 2:
        return 'there is one card'
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(_rank, (names, device.type, folder), nprocs=RANKS)
        except Exception as failure:  # of the backend, or of a norm
            reason = str(failure).strip().splitlines()[-1]
            return [dict(norm=', '.join(names), error=math.nan, problems=[f'two ranks: {reason}'])]
        errors = [read_json(Path(folder, f'{rank}.json')) for rank in range(RANKS)]
    rows = [dict(norm=name, error=max(of_rank[name] for of_rank in errors)) for name in names]
    for row in rows:
        if not row['error'] <= LIMITS['float32']:
            row['problems'] = [f'{row["norm"]} on two ranks: off by {row["error"]:.1e} of float64']
    return rows


def _rank(rank, names, kind, folder):
    import torch
    from torch import distributed

    from mmnorm.files import write_json

    device = torch.device(kind, rank) if kind == 'cuda' else torch.device(kind)
    if kind == 'cuda':
        torch.cuda.set_device(device)
    distributed.init_process_group(
        'nccl' if kind == 'cuda' else 'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=RANKS
    )
    share = slice(0, 3) if rank == 0 else slice(3, 4)
    errors = {}
    for name in names:
        torch.manual_seed(SEED)
        layer = randomized(build(name, PROBE[1]))
        x, grad = torch.randn(4, *PROBE[1:]) * 2 + 1, torch.randn(4, *PROBE[1:])
        alone = build(name.removeprefix('Sync'), PROBE[1])
        alone.load_state_dict(layer.state_dict())
        y, dx, *expected = passed(alone.double(), x.double(), grad.double())
        own_y, own_dx, *rest = passed(layer.to(device), x[share].to(device), grad[share].to(device))
        for value in rest[: sum(1 for _ in layer.parameters())]:
            distributed.all_reduce(value)
        errors[name] = largest_error([own_y, own_dx, *rest], [y[share], dx[share], *expected])
    write_json(Path(folder, f'{rank}.json'), errors)
    distributed.destroy_process_group()


def cost(args, device):
    """Time every norm (see :func:`~mmnorm.cli.benchmark.time_layers`) and print means over the feature maps."""
    from tabulate import tabulate

    both = PASSES[1]
    shapes = SHAPES if device.type == 'cuda' else SMALL
    rows = time_layers(SimpleNamespace(norms=args.norms, shapes=shapes, compile=False, rounds=args.rounds), device)
    found = {(row['kind'], row['norm']): row for row in rows}
    for row in rows:
        # forward and backward move 8 times the tensor at least, as BatchNorm does, and a copy twice
        row['bandwidth'] = 4 * found[row['kind'], 'copy']['forward'] / row[both]
    table = {}
    for row in rows:
        form = row['kind'].rpartition(') ')[2]
        for other in (BN, 'nn.GroupNorm'):
            ratio = row[both] / found[row['kind'], other][both]
            table.setdefault(row['norm'], {}).setdefault(f'{form}: over {other}', []).append(ratio)
        table[row['norm']].setdefault(f"{form}: of a copy's bandwidth", []).append(row['bandwidth'])
    means = [
        {'': norm, **{key: statistics.geometric_mean(values) for key, values in columns.items()}}
        for norm, columns in table.items()
    ]
    print(f'\nForward + backward, geometric mean over {len(shapes)} feature maps')
    print(tabulate(means, 'keys', floatfmt='.2f'), flush=True)
    return rows


def steps(args, device):
    """Time training steps of Mask R-CNN R-50 with each norm everywhere, and their peak memory."""
    from mmnorm.norms import NORMS

    size = STEP_SIZE if device.type == 'cuda' else (256, 256)
    print(f'\nTraining step of Mask R-CNN R-50, norm everywhere, on two images of {size[0]} x {size[1]} pixels')
    names = args.norms or [name for name in NORMS if not name.startswith('Sync')]
    return time_model(SimpleNamespace(norms=names, image_size=size, rounds=min(args.rounds, 5)), device)
