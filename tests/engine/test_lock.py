"""Two trainings do not share a work dir, and one that was killed keeps nobody out."""

import json
import multiprocessing
import os
import time

import pytest

from mmnorm import cli, engine
from mmnorm.engine import check_unused, lock, on_first_rank, training_lock
from mmnorm.files import WriteError


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'training.lock'


def refused(work_dir):
    """What is told where a work dir is in use."""
    for attempt in (check_unused, lambda folder: training_lock(folder).__enter__()):
        with pytest.raises(WriteError) as told:
            attempt(work_dir)
    return str(told.value)


def test_a_second_training_is_told_of_the_first(tmp_path, path):
    with training_lock(tmp_path):
        other = json.loads(path.read_text())
        assert refused(tmp_path) == (
            f'{tmp_path} is in use: process {os.getpid()} on {other["host"]} trains there since {other["since"]}, and '
            'two trainings would overwrite the checkpoints of each other. So wait for its end, or choose another '
            'folder (--work-dir)'
        )
        assert json.loads(path.read_text()) == other
    assert not path.exists()
    check_unused(tmp_path / 'new')
    with training_lock(tmp_path / 'new'):
        pass
    assert [child.name for child in tmp_path.iterdir()] == ['new']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_an_end_of_any_kind_gives_it_back(tmp_path, path, error):
    with pytest.raises(error), training_lock(tmp_path):
        raise error
    assert not path.exists()


def fork(run, *args):
    process = multiprocessing.get_context('fork').Process(target=run, args=args)
    process.start()
    return process


def hold(work_dir):
    with training_lock(work_dir):
        os._exit(9)  # as a kill does


def test_what_a_killed_training_left_is_taken_over(tmp_path, path):
    process = fork(hold, tmp_path)
    while not path.exists():
        time.sleep(0.01)
    deadline = time.monotonic() + 10
    while lock._start_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()  # its process, which nobody waited for yet, is no more
    with training_lock(tmp_path):
        assert json.loads(path.read_text())['process'] == os.getpid()
    process.join()


@pytest.mark.parametrize(
    'changes, taken',
    [
        (dict(start='1 ticks after boot of yesterday'), True),  # its id is now that of another process
        (dict(process=2**22 + 1), True),
        (dict(host='node-7'), False),
        (dict(host='node-7', process=2**22 + 1), False),
        (dict(namespace='pid:[1]'), False),  # a container of the same host name
        (dict(host='node-7', job='12', requeues='0'), True),
        (dict(host='node-7', job='12', requeues='1'), False),  # another node of the same job
        (dict(host='node-7', job='13', requeues='0'), False),
    ],
)
def test_whose_lock_is_taken_over(tmp_path, path, changes, taken, monkeypatch):
    monkeypatch.setenv('SLURM_JOB_ID', '12')
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    content = json.dumps(dict(lock._this_process(), **changes))
    path.write_text(content)
    if taken:
        check_unused(tmp_path)
        with training_lock(tmp_path):
            pass
    else:
        assert f'if it has ended, which cannot be seen from here ({os.uname().nodename}), remove {path}' in refused(
            tmp_path
        )
        assert path.read_text() == content


@pytest.mark.parametrize('content', ['', '{"host": "no', '[]'])
def test_a_lock_that_was_not_written_whole_is_of_a_killed_process(tmp_path, path, content):
    path.write_text(content)
    with training_lock(tmp_path):
        assert json.loads(path.read_text())['process'] == os.getpid()


def test_of_many_at_once_one_trains(tmp_path):
    hold = multiprocessing.get_context('fork').Event()
    results = multiprocessing.get_context('fork').Queue()
    (tmp_path / 'training.lock').write_text(json.dumps(dict(lock._this_process(), process=2**22 + 1)))

    def train():
        try:
            with training_lock(tmp_path):
                results.put('trains')
                hold.wait(60)
        except WriteError:
            results.put('refused')

    processes = [fork(train) for _ in range(8)]
    assert sorted(results.get(timeout=60) for _ in processes) == ['refused'] * 7 + ['trains']
    hold.set()
    for process in processes:
        process.join()
    assert not list(tmp_path.iterdir())


def test_a_planted_link_is_not_followed(tmp_path, path):
    (tmp_path / 'victim').write_text('precious')
    path.symlink_to('victim')
    with pytest.raises(OSError, match='symbolic link'), training_lock(tmp_path):
        pass
    assert (tmp_path / 'victim').read_text() == 'precious'


@pytest.mark.parametrize('argv', [[], ['--check', '1'], ['--processes', '2'], ['--launcher', 'pytorch']])
def test_mmnorm_train_ends_with_one_line(digits_config, tmp_path, capsys, monkeypatch, argv):
    monkeypatch.setattr(engine, 'die_with_parent', lambda: None)
    config, work_dir = str(digits_config()), tmp_path / 'run'
    with training_lock(work_dir):
        assert cli.main(['train', config, '--work-dir', str(work_dir), *argv]) == 2
        assert (
            capsys.readouterr().err.splitlines()[-1].startswith(f'error: {work_dir} is in use: process {os.getpid()}')
        )
        assert [path.name for path in work_dir.iterdir()] == ['training.lock']


@pytest.mark.parametrize('name', ['RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'])
def test_the_first_rank_of_every_launcher_is_known(monkeypatch, name):
    for rank in range(2):
        monkeypatch.setenv(name, str(rank))
        assert on_first_rank() == (rank == 0)


def test_other_ranks_leave_the_lock_to_the_first(digits_config, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, 'die_with_parent', lambda: None)
    monkeypatch.setenv('RANK', '1')
    trained = []
    monkeypatch.setattr('mmnorm.cli.train.train', lambda cfg, args: trained.append(cfg))
    argv = ['train', str(digits_config()), '--work-dir', str(tmp_path / 'run'), '--launcher', 'pytorch']
    with training_lock(tmp_path / 'run'):
        assert cli.main(argv) == 0
    assert len(trained) == 1
