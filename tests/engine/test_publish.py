"""Published checkpoints: weights alone, with a name that torch.hub and mmengine can check."""

import hashlib

import pytest
import torch

from mmnorm.cli import main
from mmnorm.engine.publish import publish
from tests.engine.test_runner import build


@pytest.fixture
def trained(tmp_path):
    """A checkpoint that mmengine wrote, with optimizer, log and schedules."""
    build(tmp_path / 'run', 1).train()
    return tmp_path / 'run/epoch_1.pth'


def test_weights_alone(trained, tmp_path):
    published = publish(trained)
    start, _, digest = published.path.stem.rpartition('-')
    assert start == 'epoch_1' and digest == hashlib.sha256(published.path.read_bytes()).hexdigest()[:8]
    assert published.path == publish(trained).path  # the same bytes, so the same file
    content = torch.load(published.path, weights_only=True)  # without anything of numpy or mmengine
    before = torch.load(trained, weights_only=False)
    assert content.keys() == {'state_dict', 'meta'} and {'optimizer', 'message_hub'} <= set(published.left_out)
    assert content['state_dict'].keys() == before['state_dict'].keys()
    assert all(torch.equal(value, before['state_dict'][key]) for key, value in content['state_dict'].items())
    assert content['meta']['epoch'] == 1 and str(tmp_path) not in str(content['meta'].keys())
    assert published.size == published.path.stat().st_size < trained.stat().st_size


def test_a_part_and_the_license_of_converted_weights(tmp_path):
    weights = {f'module.{name}.weight': torch.full([2], float(i)) for i, name in enumerate(('backbone', 'head'))}
    note = dict(licence='MIT', whose='an author', converted_from='a.pth', through=[])
    torch.save(dict(state_dict=weights, meta=dict(mmnorm=note, seed=5)), tmp_path / 'a.pth')
    published = publish(tmp_path / 'a.pth', tmp_path / 'new/b.pth', only='backbone')
    assert published.path.parent == tmp_path / 'new' and published.path.name.startswith('b-')
    content = torch.load(published.path, weights_only=True)
    assert content['state_dict'].keys() == {'weight'} and content['meta'] == dict(mmnorm=note)
    assert 'license: MIT' in published.text() and '1 tensors not under backbone.' in published.text()


def test_views_are_saved_alone(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.randn(10**6)[:5])), tmp_path / 'a.pth')
    assert publish(tmp_path / 'a.pth').size < 10**4


def test_the_command(trained, capsys):
    assert main(['publish', str(trained)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1].startswith(str(trained.with_suffix(''))) and 'left out: ' in told[0]
