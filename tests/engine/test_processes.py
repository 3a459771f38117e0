"""Forks of a run leave Ctrl-C to it, and say nothing of a handshake that it cuts off; of other errors they do.

Commands that it starts are ended by Ctrl-C.
"""

import pytest

SCRIPT = """
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import resource_sharer
from unittest import mock

import torch
from torch.utils.data import DataLoader, Dataset

from mmnorm.engine import die_with_parent


class Interrupted(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        signal.raise_signal(signal.SIGINT)
        try:
            raise EOFError('of its own')
        except EOFError:
            sys.excepthook(*sys.exc_info())
        return torch.tensor([index])


def interrupt(*_):  # keeps no connection open, as a mock does that notes its calls
    raise KeyboardInterrupt


def detach(self):
    for cut in 'answer_challenge', 'Connection.send':
        # as Ctrl-C does; the thread serves one after the other, and has dealt with this before what follows
        with mock.patch(f'multiprocessing.connection.{cut}', interrupt), suppress(KeyboardInterrupt):
            whole(self)
    resource_sharer._resource_sharer.get_connection((self._id[0], 'unknown')).close()
    return whole(self)


die_with_parent()
command = subprocess.Popen(['sleep', '60'], preexec_fn=int)
command.send_signal(signal.SIGINT)
print('ended by', -command.wait())
whole = resource_sharer.DupFd.detach
with mock.patch.object(resource_sharer.DupFd, 'detach', detach):
    print(torch.cat([batch[0] for batch in DataLoader(Interrupted(), num_workers=1)]).tolist())
"""


@pytest.mark.e2e
def test_a_worker_tells_all_errors_but_that_it_was_hung_up_on(tmp_path, forked_tool):
    (tmp_path / 'script.py').write_text(SCRIPT)
    done = forked_tool(tmp_path / 'script.py')
    assert done.returncode == 0 and '[0, 1, 2]' in done.stdout, done.stdout
    assert 'ended by 2' in done.stdout
    assert done.stdout.count('EOFError: of its own') == done.stdout.count("KeyError: 'unknown'") == 3
    assert done.stdout.count('Traceback') == 6, done.stdout
