"""What the statistics of a trained network's BNs do: measure, recollect, calibrate, disturb, look at weights.

Free functions over a model and an iterable of batches; the hooks and tools are thin callers.
"""
from .collect import INPUT, Moments, bn_layers, collect_moments
from .modes import evaluating, normalizing_by_batch
from .perturb import first_norms, perturbed
from .recollect import recollect
from .shift import Shift, estimation_shift, measure_shift

__all__ = [
    'INPUT', 'Moments', 'Shift', 'bn_layers', 'collect_moments', 'estimation_shift', 'evaluating', 'first_norms',
    'measure_shift', 'normalizing_by_batch', 'perturbed', 'recollect'
]
