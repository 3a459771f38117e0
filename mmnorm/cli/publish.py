"""Write the weights of a checkpoint alone, to be given to others: without optimizer, schedules and log.

The name of the new file ends in the first 8 digits of its SHA-256, as OpenMMLab's and PyTorch's releases do, which
torch.hub and mmengine check when they download it. It keeps the config, classes and origin that the checkpoint states.
"""

from .light import light

EXAMPLE = 'mmnorm publish work_dirs/CONFIG_NAME/epoch_12.pth'


def add_arguments(parser):
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file of a training')
    parser.add_argument('--out', metavar='NAME.pth', help='instead of the name of CHECKPOINT; the sum is added to it')
    parser.add_argument('--only', default='', metavar='PREFIX', help="only what is under it, without it: 'backbone'")


def run(args):
    """Publish."""
    from mmnorm.engine import forbid_running_checkpoints
    from mmnorm.engine.publish import publish

    forbid_running_checkpoints()
    with light('terminal').working(f'reading {args.checkpoint}'):
        published = publish(args.checkpoint, args.out, args.only)
    print(light('terminal').printable(published.text()))
    print(published.path)
