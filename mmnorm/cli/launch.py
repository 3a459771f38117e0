"""Commands in other processes: one on several, and a training within another command."""

import os
import subprocess
import sys

from .light import HOME, light


def launch(name, command, args):
    """Check once that a command can run, then become torchrun, which runs it in each process; does not return.

    Whatever is missing is so said once, and not by each process. ``NNODES``, ``NODE_RANK``, ``MASTER_ADDR`` and
    ``PORT`` come from the environment.

    Args:
        name (str): Of the command.
        command (module): The same.
        args (Namespace): Of :func:`~mmnorm.cli.arguments.add_run_arguments`; ``processes`` is given.

    Raises:
        SystemExit: Something is missing, or no more than a check was asked for.
    """
    only_check, args.check = args.check, args.check or args.processes
    args.launches = not only_check
    try:
        command.run(args)
    except SystemExit as end:
        if end.code or only_check:
            raise
    if only_check:
        return
    nodes = ['--standalone']
    if int(os.environ.get('NNODES') or 1) > 1:
        nodes = [
            '--nnodes',
            os.environ['NNODES'],
            '--node_rank',
            os.environ.get('NODE_RANK') or '0',
            '--master_addr',
            os.environ.get('MASTER_ADDR') or '127.0.0.1',
            '--master_port',
            os.environ.get('PORT') or '29500',
        ]
        if args.timeout:  # of machines that do not come
            nodes += ['--rdzv_conf', f'timeout={args.timeout}']
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(
        sys.executable,
        [
            sys.executable,
            str(HOME / 'cli/ranks.py'),
            *nodes,
            '--nproc_per_node',
            str(args.processes),
            '-m',
            'mmnorm_door',
            name,
            *args.argv,
            '--launcher',
            'pytorch',
        ],
    )


def train(config, work_dir, processes=None, options=(), more=()):
    """Train a config in processes of its own, from where an earlier training in the work dir stopped.

    They end with this process, however it ends.

    Args:
        config, work_dir, processes, options, more: As of :func:`training_command`.

    Returns:
        int: Its exit status.
    """
    command = training_command(config, work_dir, processes, options, more)
    return subprocess.run(command, env=training_environment()).returncode


def training_command(config, work_dir, processes=None, options=(), more=()):
    """The command (list[str]) of a training, which goes on from where an earlier one in the work dir stopped.

    Args:
        config (str or Path): Its file.
        work_dir (str or Path): Of the training.
        processes (int or None): As of ``mmnorm train --processes``.
        options (Sequence[str]): What overrides values of the config, each KEY=VALUE.
        more (Sequence[str]): Other arguments of ``mmnorm train``.
    """
    command = [sys.executable, '-m', 'mmnorm_door', 'train', config]
    command += ['--processes', processes] if processes else []
    command += ['--work-dir', work_dir, '--resume', *more]
    command += ['--cfg-options', *options] if options else []
    return [str(part) for part in command]


def training_environment():
    """The environment (dict) of a training that ends with this process, also if this one is killed."""
    return {**os.environ, light('terminal').PARENT: str(os.getpid())}
