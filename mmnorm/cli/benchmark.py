"""Time every registered normalizer against BatchNorm, GroupNorm and a plain copy, in one process, interleaved.

Prints ratios over nn.BatchNorm2d, with a line for large and one for small shapes, and writes benchmark.json and
benchmark.png. With --model it times a training step of Mask R-CNN R-50 with the norm everywhere (backbone, FPN,
4conv1fc head, mask head) instead, and its peak memory.
"""

import argparse
import datetime
import itertools
import math
import platform
import random
import statistics
import time
import warnings
from pathlib import Path

from .arguments import positive

EXAMPLE = 'mmnorm benchmark --norms SN RBN'

# Feature maps of a detector on two images, of a classifier's last stages, and of a head on 512 RoIs
SHAPES = ((2, 64, 200, 200), (2, 256, 100, 100), (2, 512, 25, 25), (16, 256, 14, 14), (512, 256, 7, 7))
BN = 'nn.BatchNorm2d'
MODEL_NORMS = ('BN', 'GN', 'SN', 'RBN', 'BGN', 'EN')
PASSES = ('forward', 'forward + backward', 'evaluation')
SMALL = 2**20  # elements; up to so many the time that a layer takes on the host is most of what it costs
SEED = 0


def add_arguments(parser):
    parser.add_argument(
        '--norms',
        nargs='+',
        metavar='NAME',
        help='registered names (default: all; with --model: ' + ' '.join(MODEL_NORMS) + ')',
    )
    parser.add_argument('--shapes', nargs='+', type=shape, default=SHAPES, metavar='N,C,H,W')
    parser.add_argument('--compile', action='store_true', help='also time the layers of mmnorm under torch.compile')
    parser.add_argument('--model', action='store_true', help='time a training step of Mask R-CNN, not single layers')
    parser.add_argument(
        '--image-size', type=square, default=(256, 256), metavar='PIXELS', help='for --model (default: 256)'
    )
    parser.add_argument(
        '--rounds', type=positive, metavar='N', help='rounds to take medians over (default: 40; with --model 5)'
    )
    parser.add_argument('--threads', type=positive, default=2, metavar='N', help='on a CPU (default: %(default)s)')
    parser.add_argument('--device', help='default: cuda if there is one, else cpu')
    parser.add_argument('--out', default='work_dirs/benchmark_norms', metavar='DIR', help='default: %(default)s')


def shape(text):
    try:
        values = tuple(int(value) for value in text.split(','))
    except ValueError:
        values = ()
    if len(values) < 3 or min(values) < 1 or math.prod(values) >= 2**63:
        raise argparse.ArgumentTypeError(f'{text!r} is not a shape; use N,C,H,W, such as 2,64,200,200')
    return values


def square(text):
    """Height and width of an image that is so many pixels wide and high; a type for argparse."""
    return (positive(text),) * 2


def prepare(args):
    """Import what timing needs, check ``args.norms``, and return the device (torch.device) of ``args.device``."""
    try:
        import torch

        import mmnorm  # noqa: F401  # registers the norms
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'mmnorm[onedl,report]' brings what is needed") from error
    device = usable_device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    check_norms(args.norms or ())
    return device


def usable_device(name):
    """The device (torch.device) of a name; ValueError if PyTorch cannot compute on it here."""
    import torch

    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # each kind of device has its own
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {name}: PyTorch cannot compute on it here ({reason}); use cpu or cuda') from error
    return device


def config_of(name, channels):
    """The config (dict) of a norm with its default arguments, and of GroupNorm, which has none for its groups."""
    return dict(type=name, num_groups=math.gcd(32, channels)) if name == 'GN' else dict(type=name)


def build(name, channels, **options):
    """A norm layer by its name, with default arguments but for options."""
    from mmcv.cnn import build_norm_layer

    return build_norm_layer(config_of(name, channels) | options, channels)[1]


def check_norms(names):
    """Raise ValueError for a name that is not that of a norm which can be built by it alone."""
    from mmengine.registry import MODELS

    from mmnorm.blocks import is_norm
    from mmnorm.norms import NORMS

    for name in names:
        try:
            found = name in MODELS.module_dict and is_norm(build(name, 32))
        except Exception as error:  # of any class that is registered
            raise ValueError(f'--norms {name}: it cannot be built by its name alone ({error})') from error
        if not found:
            raise ValueError(
                f'--norms {name}: no norm is registered by this name; those of mmnorm are {", ".join(NORMS)}'
            )


def layers(names, channels, compiled):
    """Label to layer: BN, GN and a copy to compare with, the norms, and variants whose cost differs."""
    import torch
    from torch import nn

    from mmnorm.norms import NORMS

    class Copy(nn.Module):
        """What memory alone costs: reads x and writes y, nothing else."""

        def forward(self, x):
            return x.clone()

    group_norm = nn.GroupNorm(math.gcd(32, channels), channels)
    found = {BN: nn.BatchNorm2d(channels), 'nn.GroupNorm': group_norm, 'copy': Copy()}
    for name in names or NORMS:
        found[name] = build(name, channels)
    if 'BGN' in found:
        found['BGN (32 groups)'] = build('BGN', channels, num_groups=32)
    if 'EN' in found:
        found['EN (online)'] = build('EN', channels, mode='online')
    if compiled:
        for name in names or NORMS:
            found[f'{name} (compiled)'] = torch.compile(build(name, channels), dynamic=True)
    return found


def time_layers(args, device):
    """One row for each shape, type and layer: milliseconds of each pass."""
    import torch

    kinds = [(torch.float32, False)]
    if device.type == 'cuda':
        kinds += [(torch.bfloat16, False), (torch.bfloat16, True)]
    rows = []
    for (dtype, channels_last), size in itertools.product(kinds, args.shapes):
        label = f'{size} {str(dtype).removeprefix("torch.")}{", channels last" if channels_last else ""}'
        if channels_last and len(size) != 4:
            continue
        x = torch.randn(size, device=device, dtype=dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        grad = torch.randn_like(x)
        found = {name: layer.to(device) for name, layer in layers(args.norms, size[1], args.compile).items()}
        # enough calls for a round to last some milliseconds, and to have EN's estimation, which is in one of four
        calls = 4 * max(1, int(5e6 / x.numel()) if device.type == 'cuda' else 0)
        times = interleaved(
            {(name, what): passes(layer, x, grad, what) for name, layer in found.items() for what in PASSES},
            args.rounds or 40,
            calls,
            device,
            label,
        )
        for name in found:
            rows.append(dict(shape=size, kind=label, norm=name, **{what: times[name, what] for what in PASSES}))
        print_layers([row for row in rows if row['kind'] == label], f'\n{label}, ms')
    return rows


def passes(layer, x, grad, what):
    """A function that makes one pass."""
    import torch

    def set_mode(training):  # no part of a pass
        if layer.training is not training:
            layer.train(training)

    def forward():
        set_mode(True)
        layer(x.requires_grad_())

    def backward():
        set_mode(True)
        layer(x.requires_grad_()).backward(grad)
        x.grad = None

    @torch.no_grad()
    def evaluate():
        set_mode(False)
        layer(x)

    return dict(zip(PASSES, (forward, backward, evaluate)))[what]


def interleaved(functions, rounds, calls, device, what):
    """Median milliseconds of a call of each function; every round runs all of them in another order."""
    import torch

    from mmnorm.terminal import working

    def finish():
        if device.type == 'cuda':
            torch.cuda.synchronize()

    times = {key: [] for key in functions}
    order, shuffle = list(functions), random.Random(SEED).shuffle
    round_ = 0
    with working(what, lambda: f'round {round_} of {rounds}'):  # a bar's own work would be in what is timed
        for round_ in range(rounds + 1):
            shuffle(order)
            for key in order:
                if calls > 1:
                    functions[key]()  # caches hold this one's data
                finish()
                start = time.perf_counter()
                for _ in range(calls):
                    functions[key]()
                finish()
                if round_:  # the first one warms up
                    times[key].append((time.perf_counter() - start) * 1e3 / calls)
    return {key: statistics.median(values) for key, values in times.items()}


def print_layers(rows, title):
    from tabulate import tabulate

    base = next(row for row in rows if row['norm'] == BN)
    table = [[row['norm'], *itertools.chain(*((row[what], row[what] / base[what]) for what in PASSES))] for row in rows]
    print(title)
    print(tabulate(table, ['', *itertools.chain(*((what, 'ratio') for what in PASSES))], floatfmt='.2f'), flush=True)


def ratios_over_bn(rows):
    """Geometric mean over shapes, for each norm and pass, of the time over BN's."""
    base = {row['kind']: row for row in rows if row['norm'] == BN}
    return {
        norm: {
            what: statistics.geometric_mean(row[what] / base[row['kind']][what] for row in rows if row['norm'] == norm)
            for what in PASSES
        }
        for norm in dict.fromkeys(row['norm'] for row in rows)
    }


def by_size(rows):
    """:func:`ratios_over_bn` of the shapes that are 'large' and of those that are 'small', by these words."""
    kinds = {'large': [], 'small': []}
    for row in rows:
        kinds['small' if math.prod(row['shape']) <= SMALL else 'large'].append(row)
    return {kind: ratios_over_bn(found) for kind, found in kinds.items() if found}


def detector(norm_cfg):
    """Mask R-CNN R-50 FPN with the norm everywhere and a 4conv1fc head, for training from scratch."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    import mmdet

    base = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py'
    cfg = Config.fromfile(base).model
    cfg.backbone.update(norm_cfg=norm_cfg, norm_eval=False, frozen_stages=-1, init_cfg=None)
    cfg.neck.norm_cfg = cfg.roi_head.mask_head.norm_cfg = norm_cfg
    cfg.roi_head.bbox_head.update(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg)
    return MODELS.build(cfg)


def training_step(norm_cfg, image_size, device):
    """A function that makes one training step, always on the same two images (height, width), boxes and choices."""
    import torch
    from mmdet.testing import demo_mm_inputs
    from mmengine.optim import OptimWrapper

    torch.manual_seed(SEED)
    model = detector(norm_cfg).to(device).train()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-5))
    # so many boxes that the sampler finds all the positives it wants: otherwise the work would depend on the norm
    data = demo_mm_inputs(
        2, [[3, *image_size]] * 2, num_items=[128, 128], num_classes=80, with_mask=True, device=str(device)
    )

    def step():
        torch.manual_seed(SEED)
        model.train_step(data, optimizer)

    return step


def peak_memory(step, device):
    """MiB that one call allocates at most beyond what it found."""
    import torch

    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == '[memory]'
    ]
    return max(itertools.accumulate(size for _, size in sorted(changes))) / 2**20


def time_model(args, device):
    """One row for each norm: seconds and MiB of a training step."""
    from tabulate import tabulate

    configs = {
        name: dict(type=name, requires_grad=True, **(dict(num_groups=32) if name == 'GN' else {}))
        for name in dict.fromkeys(['BN', *(args.norms or MODEL_NORMS)])
    }
    steps = {name: training_step(cfg, args.image_size, device) for name, cfg in configs.items()}
    times = interleaved(steps, args.rounds or 5, 1, device, 'training steps')
    memory = {name: peak_memory(step, device) for name, step in steps.items()}
    rows = [
        dict(
            norm=name,
            milliseconds=times[name],
            ratio=times[name] / times['BN'],
            peak_mib=memory[name],
            peak_ratio=memory[name] / memory['BN'],
        )
        for name in steps
    ]
    print(tabulate(rows, 'keys', floatfmt=('', '.0f', '.3f', '.0f', '.3f')))
    return rows


def draw(ratios, title, path):
    """Bars of time over BN's, one for each norm."""
    import matplotlib
    from matplotlib.figure import Figure

    from mmnorm.files import replacing
    from mmnorm.report.plots import COLORS, FAINT, SOFT, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 1.2 + 0.3 * len(ratios)), layout='constrained')
        axes = figure.subplots()
        names = sorted(ratios, key=ratios.get)
        reference = {BN, 'BN', 'GN', 'nn.GroupNorm', 'copy'}
        bars = axes.barh(
            names,
            [ratios[name] for name in names],
            height=0.7,
            color=[FAINT if name in reference else COLORS[0] for name in names],
        )
        # a norm that takes many times as long would leave the others no room
        limit = min(max(ratios.values()), max(2.0, 2 * statistics.median(ratios.values())))
        for bar, name in zip(bars, names):
            label = f'{ratios[name]:.2f}' + (' \N{RIGHTWARDS ARROW}' if ratios[name] > limit else '')
            axes.annotate(
                label,
                (min(ratios[name], limit), bar.get_y() + bar.get_height() / 2),
                xytext=(4, 0),
                textcoords='offset points',
                va='center',
                color=SOFT,
                bbox=dict(facecolor='white', edgecolor='none', pad=1),
            )
        axes.axvline(1, color=SOFT, linewidth=1, linestyle='--', zorder=0.5)
        axes.set_xlim(0, limit * 1.12)
        axes.set(title=title, xlabel="time over BatchNorm's (1 = as fast; shorter is faster)")
        axes.grid(axis='y', visible=False)
        axes.invert_yaxis()
        with replacing(path) as partial:
            figure.savefig(partial, format='png', dpi=150)


def machine(device, threads):
    """What the figures depend on."""
    import torch

    if device.type == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
        name = next(
            (line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.processor()
        )
    return dict(device=name, threads=threads, torch=torch.__version__, python=platform.python_version())


def run(args):
    """Time, and write and draw what was measured."""
    warnings.simplefilter('ignore')
    device = prepare(args)
    import torch

    from mmnorm.files import check_writable, write_json

    try:
        torch.set_num_threads(args.threads)
    except ValueError as error:
        raise ValueError(f'--threads {args.threads}: {error}') from error
    torch.manual_seed(SEED)
    # as in a training: glibc hands memory back to the system, and gets it page by page, until a large block was freed
    torch.ones(2**23 - 2**16)
    out = Path(args.out)
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    about = dict(
        machine(device, args.threads),
        date=str(datetime.date.today()),
        seed=SEED,
        command=' '.join(['mmnorm benchmark', *args.argv]),
    )
    if args.model:
        rows = time_model(args, device)
        ratios = {row['norm']: row['ratio'] for row in rows}
        title, result = 'Training step of Mask R-CNN R-50, norm everywhere', dict(rows=rows)
    else:
        rows = time_layers(args, device)
        means = ratios_over_bn(rows)
        from tabulate import tabulate

        print(f"\nGeometric mean over shapes of the time over {BN}'s")
        print(tabulate([[norm, *values.values()] for norm, values in means.items()], ['', *PASSES], floatfmt='.2f'))
        kinds = by_size(rows)
        for kind, found in kinds.items():
            costs = ', '.join(f'{norm} {values[PASSES[1]]:.2f}' for norm, values in found.items() if norm != BN)
            print(f'\n{kind} shapes, {PASSES[1]}, over {BN}: {costs}')
        ratios = {norm: values['forward + backward'] for norm, values in means.items()}
        title, result = 'Forward + backward, geometric mean over shapes', dict(rows=rows, ratios=means, **kinds)
    name = 'benchmark_model' if args.model else 'benchmark'
    write_json(out / f'{name}.json', dict(about, **result))
    draw(
        ratios, f'{title}\n{about["device"]}, {about["threads"]} threads, PyTorch {about["torch"]}', out / f'{name}.png'
    )
    print(f'{out / name}.json, {out / name}.png')
