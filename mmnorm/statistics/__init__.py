"""What the statistics of a trained network's BNs do: measure, recollect, calibrate, disturb, look at weights.

Free functions over a model and an iterable of batches; the hooks and tools are thin callers.
"""
from mmnorm.norms.modes import evaluating, normalizing_by_batch, run

from .batches import training_batches, training_forward
from .calibrate import SYNC_TYPES, apply_rule, evalnorm_config, replace_norm_types, to_evalnorm, trained_by_batch
from .collect import INPUT, Moments, bn_layers, collect_moments
from .histograms import EDGES, collect_histograms, worst_channel
from .hooks import EstimationShiftHook, RecollectHook, SyncStatisticsHook
from .perturb import first_norms, perturbed
from .receptive_field import receptive_fields, run_dense_part
from .recollect import recollect
from .shift import Shift, domain_shift, estimation_shift, measure_shift
from .weights import measure_spread, norm_weights, part_of
from .weights_hook import NormWeightsHook

__all__ = [
    'EDGES', 'INPUT', 'SYNC_TYPES', 'EstimationShiftHook', 'Moments', 'NormWeightsHook', 'RecollectHook', 'Shift',
    'SyncStatisticsHook', 'apply_rule', 'bn_layers', 'collect_histograms', 'collect_moments', 'domain_shift',
    'estimation_shift',
    'evalnorm_config', 'evaluating', 'first_norms', 'measure_shift', 'measure_spread', 'norm_weights',
    'normalizing_by_batch', 'part_of', 'perturbed', 'receptive_fields', 'recollect', 'replace_norm_types', 'run',
    'run_dense_part', 'to_evalnorm', 'trained_by_batch', 'training_batches', 'training_forward', 'worst_channel'
]
