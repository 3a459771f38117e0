"""ShuffleNetV2 for mmdet and mmseg, which have none, and its XBN twin (paper xbn, Figures A11 and A12)."""

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .xbn import XBN

#: Channels of the three stages and of the last convolution, by width (Ma et al., Table 5).
CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
BLOCKS = (4, 8, 4)


class InvertedResidual(BaseModule):
    """ShuffleNetV2's block: half of the channels pass as they are, and all are shuffled at the end (Figure 3 (c)).

    With a stride or new channels both halves come from the whole input, by convolutions (Figure 3 (d)).

    Args:
        in_channels, out_channels (int): Of the block; ``out_channels`` even.
        stride, dilation (int): Of the depthwise convolutions.
        with_cp (bool): Recompute in the backward pass, to save memory.
        **kwargs: ``conv_cfg``, ``norm_cfg`` and ``act_cfg`` of the convolutions.
    """

    def __init__(self, in_channels, out_channels, stride=1, dilation=1, with_cp=False, **kwargs):
        super().__init__()
        self.with_cp = with_cp
        half = out_channels // 2
        depthwise = dict(kwargs, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, act_cfg=None)
        self.branch1 = None
        if stride > 1 or in_channels != out_channels:
            self.branch1 = nn.Sequential(
                ConvModule(in_channels, in_channels, groups=in_channels, **depthwise),
                ConvModule(in_channels, half, 1, **kwargs),
            )
        self.branch2 = nn.Sequential(
            ConvModule(in_channels if self.branch1 else half, half, 1, **kwargs),
            ConvModule(half, half, groups=half, **depthwise),
            ConvModule(half, half, 1, **kwargs),
        )

    def forward(self, x):
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x):
        passed, taken = (self.branch1(x), x) if self.branch1 else x.chunk(2, dim=1)
        return torch.stack((passed, self.branch2(taken)), dim=2).flatten(1, 2)


class ShuffleNetV2(BaseModule):
    """ShuffleNetV2 (Ma et al., ECCV 2018, Table 5).

    Layers are named as in OpenMMLab's classification code, whose weights of width 1 load with
    ``init_cfg=dict(type='Pretrained', checkpoint='mmcls://shufflenet_v2')``.

    Args:
        widen_factor (float): 0.5, 1.0, 1.5 or 2.0. Default 1.0.
        strides (tuple[int]): Of the three stages; they come after a stride of 4. Default (2, 2, 2).
        dilations (tuple[int]): Of their depthwise convolutions. Default (1, 1, 1).
        out_indices (tuple[int]): Which outputs to give: 0, 1, 2 the stages, 3 the last convolution, which exists only
            then. Default (0, 1, 2).
        frozen_stages (int): 0 freezes the stem, k also the first k stages; -1 nothing. Default -1.
        conv_cfg, norm_cfg, act_cfg (dict or None): Of all convolutions. Default BN and ReLU.
        norm_eval (bool): BNs normalize by running statistics in training. Default False.
        with_cp (bool): Recompute blocks in the backward pass, to save memory. Default False.
        init_cfg (dict, list[dict] or None): Default Kaiming initialization of convolutions.

    Raises:
        ValueError: A width that the paper does not have, or an index that does not exist.
    """

    def __init__(
        self,
        widen_factor=1.0,
        strides=(2, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        conv_cfg=None,
        norm_cfg=dict(type='BN'),  # noqa: B006 (never changed)
        act_cfg=dict(type='ReLU'),  # noqa: B006 (never changed)
        norm_eval=False,
        with_cp=False,
        init_cfg=None,
    ):
        if widen_factor not in CHANNELS:
            raise ValueError(f'ShuffleNetV2: widen_factor must be one of {tuple(CHANNELS)}, got {widen_factor}')
        if not set(out_indices) <= set(range(len(BLOCKS) + 1)):
            raise ValueError(f'ShuffleNetV2: out_indices must be among 0 to {len(BLOCKS)}, got {tuple(out_indices)}')
        if frozen_stages not in range(-1, len(BLOCKS) + 1):
            raise ValueError(f'ShuffleNetV2: frozen_stages must be -1 to {len(BLOCKS)}, got {frozen_stages}')
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        self.widen_factor, self.out_indices = widen_factor, out_indices
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        cfg = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        *widths, last = CHANNELS[widen_factor]
        channels = 24
        self.conv1 = ConvModule(3, channels, 3, stride=2, padding=1, **cfg)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layers = nn.ModuleList()
        for width, number, stride, dilation in zip(widths, BLOCKS, strides, dilations):
            self.layers.append(
                nn.Sequential(
                    *(
                        InvertedResidual(
                            width if block else channels, width, 1 if block else stride, dilation, with_cp, **cfg
                        )
                        for block in range(number)
                    )
                )
            )
            channels = width
        if len(BLOCKS) in out_indices:  # parameters without gradients stop DDP
            self.layers.append(ConvModule(channels, last, 1, **cfg))
        self._freeze_stages()

    def forward(self, x):
        """Compute the outputs of ``out_indices``.

        Args:
            x (Tensor): Images, (N, 3, H, W).

        Returns:
            tuple[Tensor]: (N, C, H / s, W / s) each, s being 8, 16, 32 and 32 with the default strides.
        """
        x = self.maxpool(self.conv1(x))
        outs = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode=True):
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self):
        if self.frozen_stages >= 0:
            for module in (self.conv1, *self.layers[: self.frozen_stages]):
                module.eval()
                module.requires_grad_(False)


class XBNShuffleNetV2(XBN, ShuffleNetV2):
    """ShuffleNetV2 with XBN blocks: GN after each depthwise convolution (xbn, Figure A11).

    GN has 8, 29 and 8 groups at widths 0.5, 1.0 and 1.5. Width 2.0 is not in the paper: 61 groups, which as the 29 of
    width 1.0 are of two channels in the first stage.
    """

    @property
    def xbn_norm_cfg(self):
        return dict(type='GN', num_groups={0.5: 8, 1.0: 29, 1.5: 8, 2.0: 61}[self.widen_factor])
