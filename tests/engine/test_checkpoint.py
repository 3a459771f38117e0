"""Files that are no checkpoints, or would run something, are told from each other."""

import os
import subprocess
from functools import partial

import pytest
import torch
from mmengine.runner.checkpoint import _load_checkpoint_with_prefix, load_checkpoint

from mmnorm.engine import CheckpointError, forbid_running_checkpoints, read_checkpoint
from mmnorm.engine.checkpoint import write_sum


class Malicious:
    def __init__(self, run, *args):
        self.of = run, args

    def __reduce__(self):
        return self.of


@pytest.mark.parametrize(
    'written, message',
    [
        (b'', 'it is empty'),
        (b'<!DOCTYPE html><html>', r"it begins with b'<!DOCTYPE html><html>', which torch.save does not write"),
        (b'PK\x03\x04 and no more', 'its end is missing, as after an interrupted download'),
        (b'\x80\x02 and no more', 'it is damaged, or holds more than tensors and plain values'),
    ],
)
def test_files_that_torch_did_not_save(tmp_path, written, message):
    (tmp_path / 'a.pth').write_bytes(written)
    with pytest.raises(ValueError, match=f'a.pth cannot be loaded as a checkpoint: {message}$'):
        read_checkpoint(tmp_path / 'a.pth')


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='is a folder: give the file in it'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match='checkpoint .*gone.pth does not exist'):
        read_checkpoint(tmp_path / 'gone.pth')


@pytest.mark.parametrize('zipped', [True, False])
def test_what_would_be_run_is_named_and_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, a=Malicious(os.mkdir, 'ran')), 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError) as refused:
        read_checkpoint('a.pth')
    assert str(refused.value) == (
        'a.pth cannot be loaded as a checkpoint: refused, because it would run posix.mkdir; '
        'ask whoever made it for a file of the state dict alone'
    )
    assert not os.path.exists('ran')


@pytest.mark.parametrize('load', [load_checkpoint, partial(_load_checkpoint_with_prefix, 'backbone.')])
def test_whoever_loads_it_says_so(tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=Malicious(os.mkdir, 'ran')), 'a.pth')
    forbid_running_checkpoints()
    with pytest.raises(CheckpointError, match='^a.pth cannot .*, because it would run posix.mkdir; [^\n]*$'):
        load(*([torch.nn.Linear(1, 1)] if load is load_checkpoint else []), 'a.pth')
    assert not os.path.exists('ran')


def test_names_do_nothing_to_a_terminal(tmp_path):
    torch.save(dict(a=Malicious(os.mkdir, 'ran'), b=Malicious(os.system, 'true')), tmp_path / 'a.pth')
    written = (tmp_path / 'a.pth').read_bytes().replace(b'mkdir', b'\x1b[31m')
    (tmp_path / 'a.pth').write_bytes(written)
    with pytest.raises(ValueError, match=r'it would run posix.\\x1b\[31m, posix.system;'):
        read_checkpoint(tmp_path / 'a.pth')


def test_methods_of_tensors_are_not_taken(tmp_path):
    torch.save(Malicious(getattr, torch.Tensor, 'add_'), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='it is damaged, or holds more than tensors and plain values'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
def test_programs_are_no_weights(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='it is a TorchScript program; use a file of its state dict alone'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'content, message',
    [
        (dict(state_dict='weights'), 'its state_dict is of type str'),
        (dict(state_dict=None), 'its state_dict is of type NoneType'),
        (dict(state_dict=[torch.ones(1)]), 'its state_dict is of type list'),
        (dict(state_dict={0: torch.ones(1)}), 'weights go by names, and 0 is none'),
        ({3: torch.ones(1)}, 'weights go by names, and 3 is none'),
        (dict(state_dict={None: 1, 'a': 2}), 'weights go by names, and None is none'),
    ],
)
def test_what_has_no_weights_by_name(tmp_path, content, message):
    """Whoever reads it, so by every tool."""
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'^{tmp_path}/a.pth is not a checkpoint: {message}$'):
        read_checkpoint(tmp_path / 'a.pth')
    forbid_running_checkpoints()
    with pytest.raises(CheckpointError, match=f'{message}$'):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / 'a.pth'))


def test_checkpoints_are_loaded(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(2))), tmp_path / 'a.pth')
    assert torch.equal(read_checkpoint(tmp_path / 'a.pth')['state_dict']['a'], torch.ones(2))


@pytest.mark.parametrize('start', [0.1, 0.5, 0.9])
def test_damage_within_a_checkpoint_is_found(tmp_path, start):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=dict(a=torch.randn(20000))), path)
    damaged = bytearray(path.read_bytes())
    first = int(len(damaged) * start)
    damaged[first : first + 4000] = bytes(4000)
    path.write_bytes(damaged)
    assert torch.load(path, weights_only=True)  # torch notices nothing
    with pytest.raises(
        CheckpointError, match=r'a.pth is damaged: the bytes of its part a/data/0 do not add up to the sum'
    ):
        read_checkpoint(path)


def test_archives_without_sums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(a=torch.ones(2)), tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(tmp_path / 'a.pth')['a'], torch.ones(2))


def test_sums_beside_checkpoints(tmp_path):
    for name in ('a.pth', 'b.pth', 'a.pth'):
        torch.save(torch.randn(3), tmp_path / name)
        write_sum(tmp_path / name)
    verify = partial(subprocess.run, ['sha256sum', '--check', '--strict', 'checkpoints.sha256'], cwd=tmp_path)
    verify(check=True)
    (tmp_path / 'a.pth').write_bytes(b'other')
    assert verify().returncode == 1
    (tmp_path / 'a.pth').unlink()
    write_sum(tmp_path / 'b.pth')
    assert (tmp_path / 'checkpoints.sha256').read_text().split()[1:] == ['b.pth']
