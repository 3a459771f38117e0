"""What test_distributed.py runs on every rank of a gloo group."""

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from mmnorm.norms import estimate_offline
from mmnorm.statistics import measure_shift, recollect, to_evalnorm

from .test_shift import Head, batches, trained


def model_and_data():
    torch.manual_seed(0)
    return trained(Head()).double(), [batch.double() for batch in batches(((3, 6, 5), (4, 8, 8), (1, 4, 9), (5, 5, 5)))]


def results(model, data):
    """Shift and recollected statistics, without gradient buckets or rounding in between."""
    shifts = measure_shift(model, data, input_statistics=(torch.zeros(3), torch.ones(3)))
    recollect(model, data)
    found = {
        name: dict(mean=s.mean, var=s.var, esm=torch.tensor(s.esm_sigma), calls=[call.var for call in s.calls])
        for name, s in shifts.items()
    }
    return found | {key: value for key, value in model.state_dict().items() if 'running' in key}


def estimated(data):
    """Alpha and beta by layer, as a process with these batches estimates them."""
    model = model_and_data()[0]
    to_evalnorm(model, ['stem.1', 'shared.1'])
    return {name: torch.tensor(pair) for name, pair in estimate_offline(model, data * 5).items()}


def work(rank, world, folder):
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
    torch.save(found_by(rank), f'{folder}/{rank}.pth')
    distributed.barrier()
    distributed.destroy_process_group()


def found_by(rank):
    """What one rank finds, and the error that NaN on the second rank alone brings it."""
    model, data = model_and_data()
    share = data[:1] if rank == 0 else data[1:]  # unequal, on purpose
    model = DistributedDataParallel(model, broadcast_buffers=False)  # else each pass waits for those of all ranks
    found = {key.removeprefix('module.'): value for key, value in results(model, share).items()}
    found['evalnorm'] = estimated(share)
    try:
        measure_shift(model, [torch.full_like(batch, torch.nan) for batch in share] if rank else share)
    except ValueError as error:
        found['error'] = str(error)
    return found
