"""Counters of floating point operations: mmengine's and fvcore's, which read a trace, and mmcv's, by layers' classes.

They know the operators of torch's norms. While they count, a norm of ours is the one of torch's that it stands for: BN
in its mode, or, where it keeps no running statistics, GN; beside it the matrix products of those that whiten. Otherwise
its operators would count 0, with a warning for each.
"""

import functools
from importlib import import_module
from importlib.util import find_spec

import torch
from torch.nn import functional as F

from mmnorm.blocks.guards import rebind
from mmnorm.norms import GW, NORMS, BatchFreeNorm, PlaneNorm
from mmnorm.norms.whitening import Whitening


def install():
    """Have the counters that are installed count our norms; called once, by ``import mmnorm``."""
    for package in ('mmengine.analysis', 'fvcore.nn'):
        if find_spec(package.partition('.')[0]) is not None:
            analysis = import_module(f'{package}.jit_analysis').JitModelAnalysis
            analysis._analyze = _with_norms_of_torch(analysis._analyze)
    if find_spec('mmcv') is not None:
        counters = import_module('mmcv.cnn.utils.flops_counter')
        rebind(counters.get_modules_mapping, _with_ours(counters.get_modules_mapping))


def _with_norms_of_torch(analyze):

    @functools.wraps(analyze)
    def guarded(self):
        ours = [m for m in self._model.modules() if isinstance(m, (PlaneNorm, BatchFreeNorm))]
        try:
            for layer in ours:
                layer.forward = functools.partial(_stand_in, layer)
            return analyze(self)
        finally:
            for layer in ours:
                del layer.forward

    return guarded


def _stand_in(layer, x):
    """What is traced in the place of a layer's own operators; of its shape and type, not of its values."""
    if isinstance(layer, PlaneNorm):
        zeros = x.new_zeros(layer.num_features)
        affine = (p if p is None else zeros for p in (layer.weight, layer.bias))  # BCN's have other shapes
        y = F.batch_norm(x, zeros, zeros, *affine, layer.by_batch, 0.0, layer.eps)
        if not isinstance(layer, Whitening):
            return y
        rows = y.transpose(0, 1).reshape(*layer.grouped, -1)
        held = None if layer.by_batch else layer.running_matrix.to(y)
        products = 0 if held is not None and held is layer._buffers.get('running_wm') else 4 * layer.iterations
        return _whitened(rows, products, held).reshape(y.shape)
    y = F.group_norm(x, 1, layer.weight, layer.bias, layer.eps)
    if not isinstance(layer, GW):
        return y
    rows = y.reshape(y.shape[0], layer.num_groups, -1)
    return _whitened(rows, 4 * layer.iterations if layer.method == 'iterative' else 1).reshape(y.shape)


def _whitened(rows, products, held=None):
    """Rows by a matrix that takes so many products, from their covariance if none is held."""
    root = torch.matmul(rows, rows.transpose(1, 2)) if held is None else held
    for _ in range(products):
        root = torch.matmul(root, root)
    return torch.matmul(root, rows)


def _with_ours(get_mapping):

    @functools.wraps(get_mapping)
    def guarded():
        mapping = get_mapping()
        counted = {norm: mapping[base] for norm in NORMS.values() for base in norm.__mro__ if base in mapping}
        return {**counted, **mapping}

    return guarded
