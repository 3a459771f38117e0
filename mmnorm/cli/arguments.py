"""Arguments that commands share."""

import argparse


class Options(argparse.Action):
    """mmengine's ``--cfg-options``, which tells the user of an argument that is not KEY=VALUE."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            key, equals, _ = value.partition('=')
            if not equals or '' in key.split('.'):
                parser.error(f'{option_string}: {value} is not KEY=VALUE, as in train_cfg.max_epochs=2')
        from mmengine.config import DictAction  # so late that --help needs nothing installed

        before = getattr(namespace, self.dest) or {}
        try:
            DictAction(self.option_strings, self.dest)(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:  # of brackets
            parser.error(f'{option_string}: {" ".join(values)}: {error}')
        setattr(namespace, self.dest, {**before, **getattr(namespace, self.dest)})


def add_config_arguments(parser):
    """Add a config and what overrides its values."""
    parser.add_argument('config', help='config file of mmdet, mmseg or mmpretrain')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override config values, e.g. train_cfg.max_epochs=2 model.backbone.depth=101',
    )


def add_run_arguments(parser):
    """Add the arguments of commands that run a config, on one process or several."""
    add_config_arguments(parser)
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results; default work_dirs/CONFIG_NAME')
    parser.add_argument(
        '--processes',
        type=positive,
        metavar='N',
        help='run N processes on this machine: one GPU each, or gloo on the CPU. For several machines, set NNODES, '
        'NODE_RANK, MASTER_ADDR and PORT in the environment and run the same command on each',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started; --processes sets it, and so do scripts for Slurm',
    )
    parser.add_argument(
        '--timeout',
        type=positive,
        metavar='SECONDS',
        help='how long processes wait for one that does not come before all end with an error; default: '
        "env_cfg.dist_cfg.timeout of CONFIG, else torch's (30 minutes on a CPU, 10 on GPUs; 15 until machines meet)",
    )
    parser.add_argument(
        '--check',
        type=positive,
        metavar='NUM_PROCESSES',
        help='only report what is missing to run CONFIG with this many processes, and exit',
    )
    parser.add_argument(
        '--skip-data-check',
        action='store_true',
        help='start with data that mmnorm check-data finds errors in, or that take it too long',
    )
    parser.set_defaults(launches=False)  # whether this process checks, and then starts others
    parser.add_argument('--local_rank', '--local-rank', type=int, help='set by launchers; ignored')


def positive(text):
    """Return a whole number above 0; a type for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'must be 1 or more, got {text}')
    return int(text)


def positive_or_0(text):
    """Return a whole number from 0 on; a type for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'must be 0 or more, got {text}')
    return int(text)


def key_value(text):
    """Return what ``--cfg-options`` takes; a type for argparse."""
    if not text.partition('=')[1]:
        raise argparse.ArgumentTypeError(f'{text} is not KEY=VALUE, as in train_cfg.max_iters=1000')
    return text
