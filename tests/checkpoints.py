"""Checkpoints of trainings that must be the same."""

import torch

#: What tells how a training went; log histories have times.
COMPARED = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'training')


def equal(one, other):
    """Whether two parts of checkpoints are the same to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
