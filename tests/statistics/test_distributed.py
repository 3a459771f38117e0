"""Two gloo processes with shares of the data give what one process with all of it gives."""

import pytest
import torch
from torch import multiprocessing

from .sync_worker import estimated, model_and_data, results, work


@pytest.mark.timeout(200)
def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(work, (2, str(tmp_path)), nprocs=2)
    expected = results(*model_and_data())
    data = model_and_data()[1]
    shares = [estimated(data[:1]), estimated(data[1:])]
    expected['evalnorm'] = {name: (shares[0][name] + shares[1][name]) / 2 for name in shares[0]}
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        # NaN on the second rank alone ends both, with the same message, and neither waits for the other
        assert 'not finite' in found.pop('error')
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, msg=key)
