"""Initialization of networks from checkpoints."""

import copy

from mmengine.model import PretrainedInit

from mmnorm.blocks import norm_layers


class PretrainedWithoutNorms(PretrainedInit):
    """mmengine's 'Pretrained' that leaves norm layers as they are, statistics and affine (evalnorm, Table 2 (b)).

        init_cfg=dict(type='PretrainedWithoutNorms', checkpoint='torchvision://resnet50')

    Args:
        checkpoint, prefix, map_location: As for mmengine's 'Pretrained'.
    """

    def __call__(self, module):
        norms = list(norm_layers(module).values())
        states = [copy.deepcopy(layer.state_dict()) for layer in norms]
        super().__call__(module)
        for layer, state in zip(norms, states):
            layer.load_state_dict(state)
