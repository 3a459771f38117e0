"""What the statistics of a trained network's BNs do: measure, recollect, calibrate, disturb, look at weights.

Free functions over a model and an iterable of batches, which need torch alone; the hooks and tools are thin callers.
"""

from mmnorm.norms.modes import evaluating, feed, normalizing_by_batch

from .calibrate import apply_rule, to_evalnorm, trained_by_batch
from .collect import INPUT, Moments, bn_layers, collect_moments, unwrapped
from .histograms import EDGES, collect_histograms, worst_channel
from .learned import measure_spread, norm_weights, part_of
from .perturb import first_norms, perturbed
from .receptive_field import receptive_fields, run_dense_part
from .recollect import recollect
from .shift import Shift, domain_shift, estimation_shift, measure_shift

__all__ = [
    'EDGES',
    'INPUT',
    'Moments',
    'Shift',
    'apply_rule',
    'bn_layers',
    'collect_histograms',
    'collect_moments',
    'domain_shift',
    'estimation_shift',
    'evaluating',
    'feed',
    'first_norms',
    'measure_shift',
    'measure_spread',
    'norm_weights',
    'normalizing_by_batch',
    'part_of',
    'perturbed',
    'receptive_fields',
    'recollect',
    'run_dense_part',
    'to_evalnorm',
    'trained_by_batch',
    'unwrapped',
    'worst_channel',
]
