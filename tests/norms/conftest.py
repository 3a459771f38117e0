import pytest
import torch

from mmnorm.norms import checks

from .cases import EVERY, described


def pytest_generate_tests(metafunc):
    if 'cfg' in metafunc.fixturenames:
        metafunc.parametrize('cfg', EVERY, ids=described)


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(checks, '_warned', set())
