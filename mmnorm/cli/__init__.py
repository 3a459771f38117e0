"""The command line: ``mmnorm COMMAND``, and the same commands behind the files of ``tools/``.

A command is a module of this folder (check_data for ``check-data``). Its docstring describes it, ``EXAMPLE`` ends its
help, ``add_arguments(parser)`` says what it takes, and ``run(args)`` does it and returns the exit status (None: 0).
``args.argv`` is what was given.
Only the module of the chosen command is imported, and what is heavy only where it is used.
"""

import argparse
import re
import signal
import sys
import traceback
from importlib import import_module

from .light import HOME, light
from .mistakes import lost_process, message_of, tell

TRACEBACK = '--traceback'
COMMANDS = {
    'train': 'train a config of mmdet, mmseg or mmpretrain',
    'pretrain': 'make the weights that a detection or segmentation row starts from',
    'test': 'evaluate a checkpoint',
    'race': 'which norm to use: short trainings with several norms and batch sizes, side by side',
    'report': "report of one or more runs, with the papers' figures",
    'diagnose': 'how well the BN statistics of a trained network fit, and which repair helps',
    'statistics': 'the single steps of diagnose: shift, recollect, evalnorm, perturb',
    'weights': 'what SN, SW and RBN layers learned: show, harden',
    'norms': 'which norm layers a config has, and which of them train',
    'check-data': 'what is wrong with the annotation files, images, label maps and class folders of a config',
    'zoo': "configs of the papers' tables: list, show, check, table, sweep",
    'convert': 'convert a checkpoint from other code, or to another norm',
    'publish': 'the weights of a checkpoint alone, with their sum in the name of the file',
    'benchmark': 'time every norm beside BatchNorm',
    'doctor': 'examine this machine: versions, right results and cost of every norm',
    'digits': 'make the embedded data set',
}


def main(argv=None):
    """Run ``mmnorm`` and return the exit status.

    Args:
        argv (list[str] or None): The command and its arguments. Default: those of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        'mmnorm',
        usage='mmnorm [-h] [--version] COMMAND ...',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Normalization layers and residual blocks of five papers for OpenMMLab.\n\ncommands:\n'
        + '\n'.join(f'  {name:<{width}}  {what}' for name, what in COMMANDS.items()),
        epilog='mmnorm COMMAND --help lists its arguments and gives an example.',
    )
    parser.add_argument('command', metavar='COMMAND', choices=COMMANDS, help=argparse.SUPPRESS)
    version = re.search("__version__ = '(.+)'", (HOME / '__init__.py').read_text(encoding='utf-8'))[1]
    parser.add_argument('--version', action='version', version=f'mmnorm {version}')
    name = parser.parse_args(argv[:1]).command
    return run_command(name, argv[1:], f'mmnorm {name}')


def run_command(name, argv=None, prog=None):
    """Run one command and return its exit status: 0, 2 after a mistake of the user, 130 after Ctrl-C; 1 if other
    processes of its run are gone.

    A mistake is told in one message, see :mod:`~mmnorm.cli.mistakes`; any other error goes on, with its traceback.

    Args:
        name (str): Of :data:`COMMANDS`.
        argv (list[str] or None): Its arguments. Default: those of this process.
        prog (str or None): What its help calls it. Default: the file that this process runs.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(name, argv, prog) or 0
    except KeyboardInterrupt as interruption:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the rest of this process: it ends
        if light('terminal').on_first_rank():
            print(': '.join(['interrupted', *map(str, interruption.args)]), file=sys.stderr)
        return 130
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        message = end.code
        error = end
    except Exception as caught:
        message = message_of(caught)
        if message is None:
            raise
        error = caught
    if TRACEBACK in argv:
        traceback.print_exception(error)
    tell(message)
    return 1 if lost_process(error) else 2


def _run(name, argv, prog):
    command = import_module(f'.{name.replace("-", "_")}', __name__)
    parser = argparse.ArgumentParser(
        prog,
        description=command.__doc__,
        epilog=f'example:\n  {command.EXAMPLE}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    parser.add_argument(
        TRACEBACK, action='store_true', default=argparse.SUPPRESS, help='show where in the code an error comes from'
    )
    given = [word for word in argv if word != TRACEBACK]  # behind a subcommand too
    args = parser.parse_args(given, argparse.Namespace(argv=argv))
    if getattr(args, 'launcher', None) == 'none' and args.processes:
        from .launch import launch

        return launch(name, command, args)
    return command.run(args)
