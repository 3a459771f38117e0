"""What a run's record says after a resumption."""

from types import SimpleNamespace

import pytest

from mmnorm.engine import RunRecordHook


@pytest.mark.parametrize(
    'written, seconds',
    [
        ('{"train_seconds": 12.5}', 12.5),
        ('{"train_seconds": 12', 0.0),
        ('{}', 0.0),
        ('[1]', 0.0),
        ('{"train_seconds": null}', 0.0),
        ('[' * 100_000, 0.0),
    ],
)
def test_a_damaged_record_does_not_end_a_resumed_run(tmp_path, written, seconds):
    hook, said = RunRecordHook(), []
    hook._path = tmp_path / 'run.json'
    hook._path.write_text(written)
    runner = SimpleNamespace(iter=5, logger=SimpleNamespace(warning=said.append))
    assert hook._earlier_seconds(runner) == seconds
    assert len(said) == (not seconds) and all(f'{hook._path} is damaged' in line for line in said)
