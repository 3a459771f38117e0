"""`mmnorm doctor`, on the CPU."""

import json

import pytest
import torch

from mmnorm.cli import doctor, run_command
from mmnorm.core import elements

QUICK = ['--norms', 'SN', 'PN', '--rounds', '1', '--device', 'cpu']


def examined(tmp_path, *options):
    status = run_command('doctor', [*QUICK, *options, '--out', str(tmp_path)])
    return status, json.loads((tmp_path / 'doctor.json').read_text())


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(doctor, 'SMALL', ((2, 32, 8, 8), (4, 32, 5, 5)))


def test_says_what_is_installed_that_all_is_right_and_what_it_costs(tmp_path, capsys):
    status, found = examined(tmp_path)
    printed = capsys.readouterr().out
    assert status == 0 and found['problems'] == [] and 'All is well' in printed
    assert found['installed']['torch'] == torch.__version__ and found['installed']["mmcv's operators"]
    kinds = {f'{dtype}{form}' for dtype in doctor.LIMITS for form in ('', ', channels last')}
    for row in found['errors']:
        assert row['errors'].keys() == kinds
        assert all(0 < error <= doctor.LIMITS[kind.partition(',')[0]] for kind, error in row['errors'].items())
    assert [row['norm'] for row in found['errors']] == ['SN', 'PN']
    assert {row['norm'] for row in found['times']} == {'nn.BatchNorm2d', 'nn.GroupNorm', 'copy', 'SN', 'PN'}
    assert all(row['bandwidth'] > 0 for row in found['times'])
    assert 'Forward + backward, geometric mean over 2 feature maps' in printed and 'Two ranks: not tried' in printed


@pytest.mark.parametrize('wrong', ['result', 'exception'])
def test_tells_of_a_norm_that_is_wrong_here(tmp_path, capsys, monkeypatch, wrong):
    right = elements.input_gradient

    def gradient(grad, *planes):
        if grad.dtype == torch.bfloat16 and wrong == 'exception':
            raise RuntimeError('no kernel image is available')
        return right(grad, *planes) * (1.1 if grad.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(elements, 'input_gradient', gradient)
    status, found = examined(tmp_path, '--no-timing')
    expected = 'off by 1.0e-01 of float64' if wrong == 'result' else 'RuntimeError: no kernel image is available'
    assert status == 1
    assert found['problems'] == [f'SN, bfloat16{form}: {expected}' for form in ('', ', channels last')]
    assert f'problem: SN, bfloat16: {expected}' in capsys.readouterr().out and 'times' not in found


def test_tells_of_operators_that_do_not_work(tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError('nms_impl: implementation for device cuda:0 not found.')

    monkeypatch.setattr(doctor, 'try_operators', fail)
    status, found = examined(tmp_path, '--no-timing')
    assert status == 1 and 'nms_impl' in found['problems'][0] and 'MMCV_WITH_OPS=1' in found['problems'][0]


@pytest.mark.e2e
def test_compares_sync_norms_on_two_ranks(tmp_path):
    rows = doctor.on_two_ranks(['SN', 'SyncSN', 'SyncBGN'], torch.device('cpu'))
    assert [row['norm'] for row in rows] == ['SyncSN', 'SyncBGN']
    assert all(0 < row['error'] < doctor.LIMITS['float32'] for row in rows)
    (failed,) = doctor.on_two_ranks(['SyncNothing'], torch.device('cpu'))
    assert failed['norm'] == 'SyncNothing' and failed['problems'][0].startswith('two ranks: ')
