"""Convert a checkpoint from other code, or with another norm, into one that loads here.

What is written loads strictly into the ResNet, ResNeXt or MobileNetV2 of the source's depth and width, or into the
backbone of --config; otherwise nothing is written. Without --config, the backbone that loads it is printed, to paste
into a config.
No code in SOURCE is ever run.
"""

import warnings

from .light import light

EXAMPLE = 'mmnorm convert SOURCE.pth OUT.pth --from sn --to SN'

LAYOUTS = {
    'xbn': "XBN's authors: torchvision's names, some norms GN",
    'sn': "SN's authors: layer1.0.sn1",
    'sn-segmentation': "SN's authors' segmenter: layer0.1.mean_weight",
    'sn-detectron': "SN's authors' detector: Conv_Body.conv_body.res2.0.sn1",
    'ssn': "SSN's authors: layer1.0.sn1.radius",
    'sw': "SW's authors: layer1.1.sw2",
    'rbn': "RBN's authors: layer1.0.bn1.center_weight",
    'ibn': "IBN-Net's authors: layer1.0.bn1.IN",
    'xbn-detection': "XBN's authors' detectors (maskrcnn-benchmark): backbone.body.stem.conv1",
    'xbn-mobilenet': "XBN's authors' MobileNetV2: features.1.conv.0",
    'torchvision': 'its ResNets and ResNeXts, its detectors',
    'mmdet': 'mmdet, mmseg, mmnorm: a backbone or a whole network',
    'mmpretrain': 'its ResNetV1c, ResNetV1d and MobileNetV2; its other ResNets are in mmdet',
    'auto': 'detected from the names (default)',
}
NORMS = {
    'XBN': 'batch-free norms where XBN has them; BN checkpoints load into XBN backbones as they are',
    'SN': 'or SyncSN; from BN: ratios that select BN (--bn-share)',
    'RBN': 'or SyncRBN; from BN: weight / sigmoid(1)',
    'SSN': "or SyncSSN; from BN as SN; from SN: its ratios, which a training makes sparse; SN is from SSN's",
    'BW': "or SyncBW; from BN: BN's tensors, channels taken to be uncorrelated",
    'SW': "or SyncSW; from SW's authors, and SW",
    'IEBN': 'or SyncIEBN; from BN: weight / sigmoid(-1)',
    'EN': "or SyncEN; from BN: BN's tensors",
    'IBN': 'from IBN-Net-a only',
    'BN': 'or SyncBN, FrozenBN, BRN, CBN; from EN always, from SN, SSN, RBN or IEBN that compute what BN does',
}


def add_arguments(parser):
    def listed(choices):
        return '\n'.join(f'  {name:<15} {what}' for name, what in choices.items())

    parser.epilog = (
        f'--from:\n{listed(LAYOUTS)}\n\n--to:\n{listed(NORMS)}\n\n'
        f'What becomes of each tensor, and why: mmnorm/convert/tensors.py, layouts.py\n\n{parser.epilog}'
    )
    parser.add_argument('source', metavar='SOURCE', help='checkpoint file, or a URL such as torchvision://resnet50')
    parser.add_argument('out', metavar='OUT', help='new checkpoint file, ending in .pth')
    parser.add_argument('--from', dest='layout', choices=LAYOUTS, default='auto', help='layout of SOURCE')
    parser.add_argument('--to', dest='norm', required=True, metavar='NORM', help='norm of OUT, see below')
    parser.add_argument(
        '--prefix',
        default='',
        help="prefix for every name in OUT, as 'backbone'; default: none, for "
        "a backbone's init_cfg=dict(type='Pretrained', checkpoint=OUT)",
    )
    parser.add_argument('--config', help='config of mmdet, mmseg or mmpretrain whose backbone OUT must fit')
    parser.add_argument(
        '--whole',
        action='store_true',
        help='convert the whole network of --config, heads included, not only its backbone',
    )
    parser.add_argument(
        '--source-prefix',
        default='',
        metavar='PREFIX',
        help="take only what is under this prefix in SOURCE, such as 'teacher'",
    )
    parser.add_argument(
        '--bn-share',
        type=float,
        default=1.0,
        metavar='SHARE',
        help="SN or SSN from BN: BN's share of the ratios. 1 (default) computes exactly what BN computed, and "
        'the ratios never train; with less they do, and it computes something else',
    )
    parser.add_argument('--hard', action='store_true', help='SN or SSN layers of SOURCE are hardened (hard=True)')
    parser.add_argument('--verbose', action='store_true', help='print every name')


def run(args):
    """Convert."""
    warnings.simplefilter('ignore')  # what networks warn of in training is of no concern here
    from mmnorm.convert import convert_file  # so late that --help is quick
    from mmnorm.engine import forbid_running_checkpoints

    forbid_running_checkpoints()
    options = {name: value for name, value in vars(args).items() if name != 'argv'}
    with light('terminal').working(f'converting {args.source}'):
        converted = convert_file(**options)
    print(light('terminal').printable(converted.text(args.verbose)))
    print(args.out)
