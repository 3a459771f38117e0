"""Find out which norm to use: short trainings of one config with several norms and batch sizes, and a page of them.

Works with any config of mmdet, mmseg or mmpretrain. Each norm takes the place of the config's BNs, and trains, in all
stages. All trainings see equally many images, and each is evaluated at its end by the config's own metric. As many run
at a time as there are GPUs for. Written to --out: race.html (one self-contained page), race.csv and race.json, after
each training; what was interrupted goes on by the same command, and norms, batch sizes and seeds can be added later.
"""

import argparse
import os
import shlex
import signal
import subprocess
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

from .arguments import add_config_arguments, positive, positive_or_0
from .chain import finished
from .launch import training_command, training_environment

EXAMPLE = 'mmnorm race CONFIG --norms BN GN SN XBN --batch-sizes 2 8 --seeds 0 1 2 --length 0.1'
NORMS = ('BN', 'GN', 'SN', 'XBN')
POLL = 0.5  # seconds


def add_arguments(parser):
    add_config_arguments(parser)
    parser.add_argument(
        '--norms',
        nargs='+',
        default=list(NORMS),
        metavar='NORM',
        help='registered names, with arguments as in GN:num_groups=16; XBN for the backbone with XBN blocks, as in '
        'XBN:position=1,num_groups=16; as-is for the config as it is (default: ' + ' '.join(NORMS) + ')',
    )
    parser.add_argument(
        '--batch-sizes',
        nargs='+',
        type=positive,
        metavar='N',
        help="images of a process in a step (default: the config's)",
    )
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=positive_or_0,
        default=[0],
        metavar='N',
        help='default: 0; several tell gain from noise',
    )
    parser.add_argument(
        '--length',
        type=_share,
        default=1.0,
        metavar='SHARE',
        help="share of the config's schedule that is trained, such as 0.1 (default: 1)",
    )
    parser.add_argument(
        '--lr-scaling',
        choices=['linear', 'sqrt', 'none'],
        default='linear',
        help="how the learning rate follows the images in a step, from the config's base_batch_size or its own "
        '(default: %(default)s)',
    )
    parser.add_argument('--processes', type=positive, default=1, metavar='N', help='of each training (default: 1)')
    parser.add_argument(
        '--jobs',
        type=positive,
        metavar='N',
        help='trainings at a time (default: as many as there are GPUs for, or 1)',
    )
    parser.add_argument('--out', metavar='DIR', help='default: work_dirs/race_CONFIG_NAME')
    parser.add_argument('--check', action='store_true', help='only say what is to be trained, and what it lacks')
    parser.add_argument('--skip-data-check', action='store_true', help='as of train')


def _share(text):
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f'must be above 0 and at most 1, got {text}')
    return value


def run(args):
    """Train what was not trained yet, and write the page."""
    from mmnorm import engine
    from mmnorm.engine.race import Start
    from mmnorm.files import check_writable
    from mmnorm.report import write_race  # before hours of training

    engine.die_with_parent()
    out = Path(args.out or Path('work_dirs', f'race_{Path(args.config).stem}'))
    cfg = load_config(args, out)
    wanted = [
        Start(norm, size, seed)
        for seed in dict.fromkeys(args.seeds)  # the outermost: all norms are compared as early as can be
        for size in dict.fromkeys(args.batch_sizes or [cfg.train_dataloader.get('batch_size')])
        for norm in dict.fromkeys(args.norms)
    ]
    configs = racing_configs(cfg, wanted, args)
    about = describe(args)
    failures = earlier_failures(out, about) | dict.fromkeys(wanted, '')
    left = [start for start in wanted if not finished(out / start.name)]
    print(describe_plan(wanted, left, args), flush=True)
    if args.check:
        return 0
    check_writable(out)

    def write():
        starts = [dict(vars(start), name=start.name, failure=failures[start]) for start in failures]
        return write_race(about, starts, out)

    try:
        with engine.training_lock(out), closing(train_all(left, configs, args, out)) as ended:
            page, sentences = write()
            for start, failures[start] in ended:
                page, sentences = write()
                print(f'{start.name}: {failures[start] or "finished"}', flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('the same command goes on') from None
    print(page, *sentences, sep='\n')
    return 1 if any(failures.values()) else 0


def load_config(args, out):
    """The config of a race (Config), checked as for a training."""
    from mmnorm import engine

    options = dict(work_dir=str(out), launcher='none', timeout=None, check=args.processes)
    return engine.load_config(argparse.Namespace(**vars(args) | options), ('train', 'val'))


def racing_configs(cfg, starts, args):
    """The config of each training, by Start; norms that cannot race are told before any is trained."""
    from mmnorm import engine
    from mmnorm.engine.race import racing_config, with_norm

    configs, of_norms, wrong = {}, {}, {}
    for start in starts:
        try:
            if start.norm not in of_norms:  # whose network is built to see that it can be
                of_norms[start.norm] = with_norm(cfg, start.norm)
            configs[start] = racing_config(of_norms[start.norm], start, args.processes, args.length, args.lr_scaling)
        except ValueError as error:
            wrong[str(error)] = None
    if wrong:
        engine.stop('\n'.join(wrong))
    return configs


def describe(args):
    """How a race is made (dict): what its page says of it."""
    from mmnorm import engine

    return dict(
        config=args.config,
        command=shlex.join(['mmnorm', 'race', *args.argv]),
        date=datetime.now().astimezone().isoformat(timespec='seconds'),
        device=engine.describe_device(),
        versions=engine.versions(),
        settings={key: getattr(args, key) for key in ('cfg_options', 'length', 'lr_scaling', 'processes')},
    )


def earlier_failures(out, about):
    """What the folder of a race has begun already: Start to why it ended early (str; '': it did not).

    Raises:
        ValueError: It was another race.
    """
    from mmnorm.engine.race import Start
    from mmnorm.files import read_json

    path = out / 'race.json'
    if not path.is_file():
        return {}
    earlier = read_json(path)
    for key in ('config', 'settings'):
        if earlier[key] != about[key]:
            raise ValueError(
                f'{path} is of a race with {key} {earlier[key]}, not {about[key]}: give another --out, or the same'
            )
    return {Start(start['norm'], start['batch_size'], start['seed']): start['failure'] for start in earlier['starts']}


def describe_plan(starts, left, args):
    """What is going to be trained (str)."""
    jobs, gpus = slots(args)
    where = f'{jobs} at a time' if jobs > 1 else 'one after the other'
    return (
        f'{len(starts)} trainings, {len(starts) - len(left)} of them finished: {", ".join(dict.fromkeys(args.norms))}; '
        f'{", ".join(map(str, dict.fromkeys(start.batch_size for start in starts)))} images of a process in a step; '
        f'seeds {", ".join(map(str, dict.fromkeys(args.seeds)))}; {args.length:g} of the schedule each; {where}'
        + (f', with {args.processes} GPU(s) each' if gpus else '')
    )


def slots(args):
    """How many trainings run at a time (int), and the GPUs of each (list[str]; none: all share what there is)."""
    import torch

    names = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
    count = torch.cuda.device_count()
    gpus = names if len(names) == count and names[0] else [str(number) for number in range(count)]
    jobs = args.jobs or max(1, count // args.processes)
    parts = [','.join(gpus[job * args.processes : (job + 1) * args.processes]) for job in range(jobs)]
    return jobs, parts if count >= jobs * args.processes else []


def train_all(starts, configs, args, out):
    """Train in processes of their own; yield each Start when it has ended, with why it ended early (str; '': not)."""
    jobs, gpus = slots(args)
    waiting, running = list(starts), {}
    try:
        while waiting or running:
            for job in [job for job in range(jobs) if job not in running][: len(waiting)]:
                start = waiting.pop(0)
                running[job] = start, *begin(start, configs[start], args, out, gpus[job] if gpus else None)
            for job, (start, process, log) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    yield start, why_it_ended(process.returncode, log)
            time.sleep(POLL)
    finally:
        for _, process, _ in running.values():
            process.send_signal(signal.SIGINT)
        for _, process, _ in running.values():
            process.wait()


def begin(start, cfg, args, out, gpus):
    """Start a training; returns its process and its log (Path)."""
    config, work_dir = out / 'configs' / f'{start.name}.py', out / start.name
    for folder in (config.parent, work_dir):
        folder.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(config))
    log = work_dir / 'console.log'
    print(f'{start.name}: trains; what it says is in {log}', flush=True)
    processes = args.processes if args.processes > 1 else None
    command = training_command(config, work_dir, processes, more=['--skip-data-check'])
    environment = training_environment() | (dict(CUDA_VISIBLE_DEVICES=gpus) if gpus else {})
    with open(log, 'ab') as console:
        return subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, env=environment), log


def why_it_ended(status, log):
    """Why a training ended early (str), by its exit status and the end of its log; '' if it did not."""
    if not status:
        return ''
    lines = [line.strip() for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    told = [line for line in lines if line.startswith('error: ')] or lines[-1:]
    return f'{told[-1] if told else "no message"} (exit status {status}; {log})'
