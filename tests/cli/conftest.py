"""The commands, called in this process in a folder with what users give to them."""

import re
from unittest import mock

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from mmnorm.cli import main

from . import workshop


@pytest.fixture(scope='session')
def folder(digits, tmp_path_factory):
    """What the tools are given, which no mistake changes."""
    folder = tmp_path_factory.mktemp('workshop')
    with mock.patch.object(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy()):  # outlives no test
        workshop.write(folder, digits)
    return folder


@pytest.fixture
def call(folder, tmp_path, monkeypatch, capsys):
    """Call a tool in the folder; returns its exit status and the messages of errors."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)  # asks compilers for their versions, for seconds
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **style: (text, True))  # of the log's config
    monkeypatch.setattr('os.register_at_fork', lambda **hooks: None)  # would outlive the test
    monkeypatch.setattr('faulthandler.enable', lambda: None)

    def run(tool, *args):
        places = tool in ('train', 'test', 'diagnose', 'statistics') and '--work-dir' not in args
        try:
            status = main([tool, *args, *(['--work-dir', str(tmp_path / 'work_dir')] if places and args else [])])
        except SystemExit as end:  # argparse
            status = end.code
        said = capsys.readouterr()
        return status, re.split('^(?:mmnorm.*: )?error: ', f'{said.out}{said.err}', flags=re.MULTILINE)[1:]

    yield run
    forget(Visualizer)
    forget(MMLogger)  # of a run that began in the same second, and so has the same name


def forget(kind):
    """Where pictures and logs are put is of a process, and a process here is a test."""
    kind._instance_dict.clear()
    for other in kind.__subclasses__():
        forget(other)
