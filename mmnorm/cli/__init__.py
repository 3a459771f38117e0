"""The command line: ``mmnorm COMMAND``, and the same commands behind the files of ``tools/``.

A command is a module of this folder (check_data for ``check-data``). Its docstring describes it, ``EXAMPLE`` ends its
help, ``add_arguments(parser)`` says what it takes, and ``run(args)`` does it and returns the exit status (None: 0).
``args.argv`` is what was given.
Only the module of the chosen command is imported, and what is heavy only where it is used.
"""

import argparse
import sys
from functools import wraps
from importlib import import_module

COMMANDS = {
    'train': 'train a config of mmdet or mmseg',
    'test': 'evaluate a checkpoint',
    'report': "report of one or more runs, with the papers' figures",
    'diagnose': 'how well the BN statistics of a trained network fit, and which repair helps',
    'statistics': 'the single steps of diagnose: shift, recollect, evalnorm, perturb',
    'weights': 'what SN and RBN layers learned: show, harden',
    'norms': 'which norm layers a config has, and which of them train',
    'check-data': 'what is wrong with the annotation files, images and label maps of a config',
    'zoo': "configs of the papers' tables: list, show, check, table, sweep",
    'convert': 'convert a checkpoint from other code, or to another norm',
    'benchmark': 'time every norm beside BatchNorm',
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
    parser.add_argument('--version', action='version', version=f'mmnorm {import_module("mmnorm").__version__}')
    name = parser.parse_args(argv[:1]).command
    return run_command(name, argv[1:], f'mmnorm {name}')


def run_command(name, argv=None, prog=None):
    """Run one command and return its exit status.

    Args:
        name (str): Of :data:`COMMANDS`.
        argv (list[str] or None): Its arguments. Default: those of this process.
        prog (str or None): What its help calls it. Default: the file that this process runs.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        command = import_module(f'.{name.replace("-", "_")}', __name__)
        parser = argparse.ArgumentParser(
            prog,
            description=command.__doc__,
            epilog=f'example:\n  {command.EXAMPLE}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parser)
    except ImportError as error:
        return _tell(error)
    args = parser.parse_args(argv, argparse.Namespace(argv=argv))
    try:
        return _run(name, command, args)
    except OSError as error:
        from mmnorm.files import WriteError, as_write_error  # so late that --help is quick

        if not isinstance(as_write_error(error), WriteError):
            raise
        return _tell(error)


def _run(name, command, args):
    if getattr(args, 'launcher', None) == 'none' and args.processes:
        from .launch import launch

        launch(name, command, args)
        return 0
    return command.run(args) or 0


def telling_mistakes(run):
    """Have a command's ``run`` tell what it raises for a mistake of the user in one line, and return status 2."""

    @wraps(run)
    def wrapper(args):
        try:
            return run(args)
        except (ImportError, OSError, ValueError) as error:
            return _tell(error)

    return wrapper


def _tell(error):
    if isinstance(error, OSError) and error.errno:
        from mmnorm.files import as_write_error

        error = as_write_error(error)
    print(f'error: {printable(" ".join(str(error).split()))}', file=sys.stderr)
    return 2


def printable(text):
    """A text without what a name in a file could do to a terminal."""
    return ''.join(letter if letter.isprintable() or letter == '\n' else '?' for letter in text)
