"""XBN backbones: hosts' backbones with :func:`~mmnorm.blocks.place_xbn`, and what is said of their weights."""

from pathlib import Path

from mmcv.cnn import build_norm_layer
from torch.nn.modules.batchnorm import _BatchNorm

from mmnorm.blocks import GN64, place_xbn
from mmnorm.norms.checks import warn_once
from mmnorm.terminal import command, config

from . import mmpretrain_keys
from .pretrained import PretrainedWithoutNorms, describe_other_size, place_of, pretrained_cfgs

_BN_TENSORS = ('weight', 'bias', 'running_mean', 'running_var')


class XBN:
    """What turns a host's backbone class into its XBN twin: ``class XBNResNet(XBN, ResNet)``.

    Checkpoints of every host load key by key, mmpretrain's where it has other names too, and so do those with BN: a
    batch-free layer ignores running statistics, and gamma and beta too if it has no affine of its own. BN checkpoints
    are fit to train on only where the BNs are live: a batch-free layer in front of a frozen BN that never saw it gives
    garbage, which is warned of.

    Args:
        xbn (dict or None): Arguments of :func:`place_xbn`. None means its defaults, with the class's ``xbn_norm_cfg``.
        *args, **kwargs: The host's own.

    Raises:
        FileNotFoundError: From ``init_weights``, when the pretrained file is missing; it names the ways on.
        ValueError: From ``init_weights``, when it does not fit, of which mmengine would load what does and log the
            rest: another depth, width or placement, or a whole network without ``prefix``. Nothing is loaded then.
    """

    xbn_norm_cfg = GN64
    _initialized_by = None

    def __init__(self, *args, xbn=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.xbn_layers = place_xbn(self, **{'norm_cfg': self.xbn_norm_cfg, **(xbn or {})}, build=_build)
        self._freeze_stages()  # the host froze before the new layers existed; DDP breaks on half-frozen stages

    def init_weights(self):
        missing = missing_pretrained(self.init_cfg)
        if missing:
            raise FileNotFoundError(missing_pretrained_message(type(self).__name__, missing))
        self._initialized_by = next(
            (
                cfg['checkpoint']
                for cfg in pretrained_cfgs(self.init_cfg)
                if cfg.get('type') not in ('PretrainedWithoutNorms', PretrainedWithoutNorms)
            ),
            None,
        )
        try:
            super().init_weights()
        finally:
            self._initialized_by = None

    def train(self, mode=True):
        if mode and self.norm_eval and any(isinstance(m, _BatchNorm) and not _frozen(m) for m in self.modules()):
            warn_once(
                f'{type(self).__name__} has norm_eval=True: its BNs normalize by running statistics that never '
                'change, only their gamma and beta and the batch-free layers train. That is meant for weights '
                f'pretrained with XBN. Otherwise set norm_eval=False ({config("_base_/live_norm.py")}); if '
                f"this is intended, set norm_cfg=dict(type='FrozenBN') ({config('_base_/frozen_norm.py')})."
            )
        super().train(mode)  # of most hosts' classes it returns nothing
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        mmpretrain_keys.to_names_of(self, state_dict, prefix)
        self._start_what_is_added(state_dict, prefix)
        bn_keys = dropped = 0
        for name in self.xbn_layers:
            own = self.get_submodule(name).state_dict()
            for key in ('running_mean', 'running_var', 'num_batches_tracked', 'weight', 'bias'):
                full = f'{prefix}{name}.{key}'
                if key not in own and full in state_dict:
                    del state_dict[full]
                    bn_keys += key == 'running_mean'
                    dropped += key == 'weight'
        if dropped:
            warn_once(
                f'{type(self).__name__}: gamma and beta of {dropped} BNs were dropped, since the batch-free '
                'layers in their place have no affine (affine=True in norm_cfg gives them one)'
            )
        if bn_keys and (self.norm_eval or self.frozen_stages >= 0 or any(map(_frozen, self.modules()))):
            warn_once(
                f'{type(self).__name__}: a BN checkpoint is loaded while BNs are frozen. A batch-free layer in '
                'front of a frozen BN that never saw it gives garbage (relative error 0.1 in stage 1, 1.0 in '
                'stage 4). Start from XBN-pretrained weights, or train the BNs: norm_eval=False and '
                f'frozen_stages=-1 ({config("_base_/live_norm.py")}), or recollect their statistics first.'
            )
        batch_free = [
            name
            for name, layer in self.named_modules()
            if getattr(layer, 'running_mean', None) is not None
            and f'{prefix}{name}.weight' in state_dict
            and f'{prefix}{name}.running_mean' not in state_dict
        ]
        if batch_free:
            warn_once(
                f'{type(self).__name__}: the checkpoint has batch-free norms in {len(batch_free)} of the places '
                f'where this backbone has BN ({", ".join(batch_free[:3])}): it was trained with another '
                'placement, and these BNs would have no statistics. Give xbn the arguments that it was trained '
                "with; the authors' weights have xbn=dict(stem=True)."
            )
        misfit = _misfit(self, state_dict) if self._initialized_by and not prefix else ''
        if misfit:
            raise ValueError(f'{type(self).__name__}: {self._initialized_by} is not its pretraining: {misfit}')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _start_what_is_added(self, state_dict, prefix):
        """Have a checkpoint of a network without the layers at ends of stages load: these stay as they are."""
        ends = [name for name in self.xbn_layers if name.endswith('.IN')]
        own = {f'{name}.{key}': value for name in ends for key, value in self.get_submodule(name).state_dict().items()}
        if not own or not any(f'{prefix}{name.rpartition(".")[0]}.conv1.weight' in state_dict for name in ends):
            return
        missing = [key for key in own if f'{prefix}{key}' not in state_dict]
        if len(missing) == len(own):
            state_dict.update({f'{prefix}{key}': own[key] for key in missing})
            warn_once(
                f'{type(self).__name__}: the checkpoint has no layers between addition and ReLU ({", ".join(ends)}): '
                'they start as new ones, and until they are trained the network computes something else than it did'
            )


def _misfit(backbone, state_dict):
    """Why a checkpoint (str; '' if it does) does not fit a backbone; what norms have beside BN may be missing."""
    other = describe_other_size(backbone, state_dict)
    if other:
        return other
    own = [name for name in backbone.state_dict() if name.rpartition('.')[2] in _BN_TENSORS]
    missing = [name for name in own if name not in state_dict]
    if missing:
        return (
            f'it lacks {len(missing)} of {len(own)} tensors ({", ".join(missing[:3])}): another depth, or norms in '
            'other places. Give depth and xbn what it was trained with'
        )
    broken = [name for name in own if not state_dict[name].isfinite().all()]
    return f'NaN or infinity in {len(broken)} of its tensors ({broken[0]})' if broken else ''


def missing_pretrained(init_cfg):
    """Find the local checkpoint that an ``init_cfg`` names and that does not exist.

    Args:
        init_cfg (dict, list[dict] or None): As mmengine takes it.

    Returns:
        str or None: Its path; None when nothing is missing or what is named is no path.
    """
    paths = [str(cfg['checkpoint']) for cfg in pretrained_cfgs(init_cfg)]
    return next((path for path in paths if '://' not in path and not place_of(path).is_file()), None)


def missing_pretrained_message(backbone, path, pretrain=''):
    """Say that weights are missing and, for an XBN backbone, name the ways on.

    Args:
        backbone (str): Name of the class that wants them.
        path (str): Where they were looked for.
        pretrain (str): The command that makes them; '' if none does.

    Returns:
        str: The message, of several lines for an XBN backbone.
    """
    message = f'{backbone}: the pretrained weights {path} are missing (looked up from {Path.cwd()}).'
    if not backbone.startswith('XBN'):
        made = f'{pretrain} trains and publishes them.\n' if pretrain else ''
        return f"""{message}
{made}For a config of mmnorm `{command('zoo')} show CONFIG` says where they come from; `{command('convert')}` converts
the authors' releases and the files of torchvision and mmdet to the form that is loaded."""
    source = f"""The authors' ImageNet weights: follow the link "ImageNet pre-trained ResNet-50 with XBNBlock" in
     ObjectDetection/README.md of github.com/huangleiBuaa/XBNBlock, save the file as {path}"""
    if 'ibn_a' in Path(path).name:
        source = f"""IBN-Net's ImageNet weights, a file of release v1.0 of github.com/XingangPan/IBN-Net, converted:
     {command('convert')} FILE {path} --to IBN"""
    elif Path(path).name != 'resnet50_xbn.pth':
        source = (
            'Those of somebody who pretrained them: the authors released only those of ResNet-50 and ResNeXt-50 with\n'
            '     GN at position 2 and in the stem (pretrained/resnet50_xbn.pth), which do not fit another '
            'placement or depth'
        )
    ways = [
        source,
        f'BN weights, with the BNs live, as in {config("mask_rcnn_xbn_r50_bn_init.py")}',
        f'No pretrained weights, as in {config("mask_rcnn_xbn_r50_scratch.py")}',
    ]
    if pretrain:
        ways.append(f'A pretraining of your own: {pretrain} trains it, and publishes it there')
    listed = '\n'.join(f'  {number}. {way}' for number, way in enumerate(ways, start=1))
    return f'{message} There are {("three", "four")[len(ways) - 3]} ways to go on:\n{listed}'


def _frozen(module):
    return getattr(module, 'frozen', False)


def _build(norm_cfg, channels):
    return build_norm_layer(norm_cfg, channels)[1]  # every norm that a config can name
