"""What a diagnosis comes to: one sentence, and the command that does it."""

import math
import shlex
from numbers import Real

#: Gain, in points, from which on a repair is worth its name; below it the choice of training images decides.
MIN_GAIN = 0.3
#: Relative shift between training and test images from which on the domains are called different.
DIFFERENT = 0.3
#: By which networks are judged, in percent: the last part of an evaluator's key.
HEADLINES = ('bbox_mAP', 'segm_mAP', 'bbox_AP', 'segm_AP', 'mAP', 'mIoU', 'PQ', 'top1')

TITLES = {
    'recollect': 'recollect the running statistics',
    'evalnorm_offline': 'turn its BNs into EN with estimated alpha and beta',
    'evalnorm_rule': 'turn its BNs into EN with alpha = beta = 1 / B^2',
}
_COMMANDS = {
    'recollect': 'recollect',
    'evalnorm_offline': 'evalnorm --mode offline',
    'evalnorm_rule': 'evalnorm --mode rule',
}


def headline(metrics):
    """The metrics that networks are judged by, in percent; all of them, as they are, where none is known.

    Args:
        metrics (dict[str, float]): Of an evaluator of mmengine.

    Returns:
        dict[str, float]: By key.
    """
    figures = {key: float(value) for key, value in metrics.items() if isinstance(value, Real)}
    known = {key: value for key, value in figures.items() if key.rpartition('/')[2] in HEADLINES}
    # mmdet gives AP as a fraction, and everything else in percent
    return {key: 100 * value if key.endswith('AP') else value for key, value in (known or figures).items()}


def recommend(result, config, checkpoint):
    """What to do.

    Args:
        result (dict): Of :class:`~mmnorm.engine.Diagnosis`.
        config, checkpoint (str): As the user gave them.

    Returns:
        dict: ``repair`` (None: leave it as it is), ``sentence``, ``finding`` (where the shift comes from), and
        ``command`` (None without repair).
    """
    layers = [layer for layer in result['layers'] if layer['type'] != 'input']
    trained_by_batch = [layer for layer in layers if layer['by_batch']]
    if not trained_by_batch:
        return dict(repair=None, command=None, **_without_repair(layers))
    advice = dict(repair=None, command=None, finding=_finding(trained_by_batch))
    # a network that detects nothing has no figures
    keys = list(dict.fromkeys(key for figures in result['headline'].values() for key in figures))
    metrics = {repair: {key: figures.get(key, 0.0) for key in keys} for repair, figures in result['headline'].items()}
    as_it_is = metrics.pop('as it is')
    gains = {repair: _mean(figures[key] - as_it_is[key] for key in keys) for repair, figures in metrics.items()}
    if not gains:
        return advice | dict(sentence='Leave it as it is: no repair could be tried.')
    best = max(gains, key=gains.get)
    title = TITLES[best]
    if not gains[best] >= MIN_GAIN:
        return advice | dict(
            sentence=f'Leave it as it is: no repair gains {MIN_GAIN} points (the best, to {title}, {gains[best]:+.1f}).'
        )
    changes = ', '.join(f'{key} {value:.1f} to {metrics[best][key]:.1f}' for key, value in as_it_is.items())
    # beside the checkpoint, or here where that came from a URL
    out = checkpoint.rpartition('/')[2] if '://' in checkpoint else checkpoint
    command = shlex.join(
        [
            'python',
            'tools/bn_statistics.py',
            *_COMMANDS[best].split(),
            config,
            checkpoint,
            *result.get('options', ()),
            '--out',
            f'{out.removesuffix(".pth")}_{best}.pth',
        ]
    )
    return advice | dict(repair=best, command=command, sentence=f'{title[0].upper()}{title[1:]}: {changes}.')


def _finding(layers):
    """Whether the estimation or the data is what shifts."""
    compared = [layer for layer in layers if layer['domain_mu'] is not None]
    if not compared:
        return None
    shift, domain = (
        _root_mean_square(math.hypot(layer[f'{kind}_mu'], layer[f'{kind}_sigma']) for layer in compared)
        for kind in ('relative', 'domain')
    )
    text = (
        f'What layers get from test images is {shift:.2f} deviations from their running statistics, and '
        f'{domain:.2f} from what they get from training images'
    )
    if domain >= 0.8 * shift:
        return f'{text}: it is the data that differ, more than the estimation.'
    return f'{text}: the running statistics are off by more than the data differ.'


def _without_repair(layers):
    why = (
        f'All {len(layers)} layers were trained with fixed statistics (norm_eval=True, frozen stages or frozen '
        'norms): EvalNorm has no batch size to correct for, and recollected statistics would change the function '
        'that was trained.'
    )
    moved = [layer for layer in layers if layer['domain_mu'] is not None]
    if not moved:
        return dict(sentence='Leave the statistics as they are.', finding=why)
    worst = max(moved, key=lambda layer: max(layer['domain_mu'], layer['domain_sigma']))
    size = max(worst['domain_mu'], worst['domain_sigma'])
    where = f'{size:.2f} deviations at most, at {worst["name"]}'
    if size < DIFFERENT:
        return dict(
            sentence=f'Leave the statistics as they are: training and test images look alike to the layers ({where}).',
            finding=why,
        )
    return dict(
        sentence='Leave the statistics as they are, and train on images more like the test images: '
        f'the two look different to the layers ({where}).',
        finding=why,
    )


def _root_mean_square(values):
    return math.sqrt(_mean(value**2 for value in values))


def _mean(values):
    values = [value for value in values if value == value]  # COCO has no figure where there are no objects
    return sum(values) / len(values) if values else float('nan')
