"""Weights of SN, SW and RBN layers over training."""

import math

from mmengine.hooks import Hook

from mmnorm.norms.checks import warn_once
from mmnorm.statistics import unwrapped
from mmnorm.statistics.learned import MIXTURES, RBN_COLUMNS, norm_weights


class NormWeightsHook(Hook):
    """Log what SN, SW and RBN layers learn to mmengine's visualizer, so to scalars.json, TensorBoard and the like.

    Averages by part of the network are ``norm_weights/PART/NAME``, with NAME one of mean_IN, mean_LN, mean_BN, var_IN,
    var_LN, var_BN (SN's ratios; sn, Fig. 7a and b), kl (sn, Fig. 7c; left out where it is infinite, as between hard
    ratios), center_weight, abs_center_weight, scale_weight, abs_scale_weight, scale_bias (RBN's; rbn, Fig. 3 and 4);
    SW's ratios and divergence are sw_mean_BW, sw_var_BW, sw_kl and so on, of the members that its layers have.

    Args:
        interval (int): Iterations between logs; the last of the training is always logged. Default 50.
        per_layer (bool): Also log every layer, as ``norm_weights_of_layers/LAYER/NAME``. Default False.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval=50, per_layer=False):
        self.interval, self.per_layer = interval, per_layer

    def before_train(self, runner):
        if not scalars(unwrapped(runner.model)):
            warn_once('NormWeightsHook: the model has no SN, SW or RBN layers, nothing is logged')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 0 and (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            values = scalars(unwrapped(runner.model), self.per_layer)
            if values:
                runner.visualizer.add_scalars(values, step=runner.iter + 1)


def scalars(model, per_layer=False):
    """Tags and values that :class:`NormWeightsHook` logs for a network; empty without SN, SW and RBN layers."""
    found = norm_weights(model)
    kinds = *MIXTURES, 'rbn'
    groups = [
        ('norm_weights', part, kind, averages) for kind in kinds for part, averages in found[f'{kind}_by_part'].items()
    ]
    if per_layer:
        groups += [('norm_weights_of_layers', row['name'], kind, row) for kind in kinds for row in found[kind]]
    return {
        f'{root}/{group}/{"sw_" if kind == "sw" else ""}{name}': value
        for root, group, kind, row in groups
        for name, value in _flat(row, found['members'].get(kind, ()))
        if value is not None and math.isfinite(value)
    }


def _flat(row, members):
    """Names and values of a row of numbers."""
    for moment in ('mean', 'var'):
        yield from ((f'{moment}_{name}', value) for name, value in zip(members, row.get(moment, ())))
    yield from ((name, row[name]) for name in ('kl', *RBN_COLUMNS) if name in row)
