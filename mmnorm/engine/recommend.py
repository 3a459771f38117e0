"""What a diagnosis comes to: one sentence, and the command that does it."""

import math
import shlex
from numbers import Real
from statistics import NormalDist

#: Gain, in points, from which on a repair is worth its name; below it the choice of training images decides.
MIN_GAIN = 0.3
#: Images in a test set below which neither a figure nor its error says anything.
MIN_IMAGES = 30
#: Of the interval of a gain; all repairs that are tried are within theirs at once so often.
CONFIDENCE = 0.95
#: Gain, in points, that must be ruled out before a network is said to need nothing. One that has less in all gets no
#: verdict.
WORTHWHILE = 1.0
#: Relative shift between training and test images from which on the domains are called different.
DIFFERENT = 0.3
#: By which networks are judged, in percent: the last part of an evaluator's key.
HEADLINES = ('bbox_mAP', 'segm_mAP', 'bbox_AP', 'segm_AP', 'mAP', 'mIoU', 'PQ', 'top1')

TITLES = {
    'recollect': 'recollect the running statistics',
    'evalnorm_offline': 'turn its BNs into EN with estimated alpha and beta',
    'evalnorm_rule': 'turn its BNs into EN with alpha = beta = 1 / B^2',
}
REPAIRS = tuple(TITLES)
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
    known = {key: value for key, value in figures.items() if _is_headline(key)}
    # mmdet gives AP as a fraction; all else is in percent, mmpretrain's AP of several labels too
    fractions = [key for key in known if key.endswith('AP') and not key.startswith('multi-label/')]
    return {key: 100 * value if key in fractions else value for key, value in (known or figures).items()}


def recommend(result, config, checkpoint):
    """What to do.

    Args:
        result (dict): Of :class:`~mmnorm.engine.Diagnosis`.
        config, checkpoint (str): As the user gave them.

    Returns:
        dict: ``verdict`` ('repair', 'leave', or 'none' where the metric cannot judge), ``repair`` (None but for
        'repair'), ``sentence``, ``finding`` (where the shift comes from), ``levels`` (of :func:`recommend_levels`), and
        ``command`` (None without repair).
    """
    layers = [layer for layer in result['layers'] if layer['type'] != 'input']
    trained_by_batch = [layer for layer in layers if layer['by_batch']]
    if not trained_by_batch:
        return dict(verdict='leave', repair=None, command=None, levels=None, **_without_repair(layers))
    levels = recommend_levels(trained_by_batch, checkpoint)
    advice = dict(verdict='none', repair=None, command=None, finding=_finding(trained_by_batch), levels=levels)
    # a network that detects nothing has no figures
    keys = list(dict.fromkeys(key for figures in result['headline'].values() for key in figures))
    metrics = {repair: {key: figures.get(key, 0.0) for key in keys} for repair, figures in result['headline'].items()}
    as_it_is = metrics.pop('as it is')
    gains = {repair: _mean(figures[key] - as_it_is[key] for key in keys) for repair, figures in metrics.items()}
    if not gains:
        return advice | dict(verdict='leave', sentence='Leave it as it is: no repair could be tried.')
    confidence = result.get('confidence') or {}
    images = confidence.get('images')
    few = images is not None and images < MIN_IMAGES
    found = [(key, value) for figures in (as_it_is, *metrics.values()) for key, value in figures.items()]
    found = [(key, value) for key, value in found if value == value]
    # what has found next to nothing tells as little, but that it was asked of few images matters more
    if not any(value >= WORTHWHILE if _is_headline(key) and not few else value for key, value in found):
        least = f'below {WORTHWHILE:.0f}' if any(value for _, value in found) else '0'
        return advice | dict(
            sentence=f'No verdict: {" and ".join(keys) or "the metric"} is {least} in every row, so it cannot tell a '
            'repair that helps from one that harms. Needed are weights that were trained for longer, or test images in '
            'which the network finds something.'
        )
    if few:
        return advice | dict(
            sentence=f'No verdict: by {images} test images a gain cannot be told from chance. Needed are at least '
            f'{MIN_IMAGES}, and more for small gains.'
        )
    widths = {repair: interval(confidence, repair) for repair in gains}
    clear = {repair: gain for repair, gain in gains.items() if gain >= MIN_GAIN and gain > (widths[repair] or 0)}
    best = max(clear or gains, key=gains.get)
    title, gain, width = TITLES[best], gains[best], widths[best]
    shown = f'{gain:+.1f}' if width is None else f'{gain:+.1f} ± {width:.1f}'
    if not gain >= MIN_GAIN:
        if width is not None and gain + width > WORTHWHILE:
            return advice | dict(
                sentence=f'No verdict: no repair gains {MIN_GAIN} points here (the best, to {title}, {shown}), but by '
                f'{images} test images a gain of {WORTHWHILE:.0f} is not ruled out. '
                f'{_images_for(images, width, WORTHWHILE - gain)} would tell.'
            )
        return advice | dict(
            verdict='leave',
            sentence=f'Leave it as it is: no repair gains {MIN_GAIN} points (the best, to {title}, {shown}).',
        )
    if not clear:
        return advice | dict(
            verdict='leave',
            sentence=f'Leave it as it is: what the best repair gains, to {title}, is within noise ({shown} points): '
            f'other test images could turn it around. {_images_for(images, width, gain)} would tell.',
        )
    changes = ', '.join(f'{key} {value:.1f} to {metrics[best][key]:.1f}' for key, value in as_it_is.items())
    command = _statistics(
        *_COMMANDS[best].split(),
        config,
        checkpoint,
        *result.get('options', ()),
        '--out',
        _beside(checkpoint, best),
    )
    beyond = '' if width is None else f', {shown} points beyond what other test images would change'
    return advice | dict(
        verdict='repair',
        repair=best,
        command=command,
        sentence=f'{title[0].upper()}{title[1:]}: {changes}{beyond}.',
    )


def interval(confidence, repair, key=None):
    """Half the width of the interval that holds a gain with :data:`CONFIDENCE`, for all repairs at once.

    Args:
        confidence (dict): Of :class:`~mmnorm.engine.Diagnosis`: ``errors``, of each repair and metric.
        repair (str): Which repair.
        key (str or None): Of the metric. Default: for the mean of all, whose error is at most the mean of theirs.

    Returns:
        float or None: In points; None where there is no error to go by.
    """
    errors = confidence.get('errors', {})
    found = errors.get(repair, {})
    found = list(found.values()) if key is None else [found[key]] if key in found else []
    if not found or math.isnan(sum(found)):
        return None
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / len(errors)) * sum(found) / len(found)


def _images_for(images, width, gain):
    """How many images it takes for an interval as wide as a gain: the width falls with their square root."""
    needed = images * (width / gain) ** 2
    rounded = math.ceil(needed / 10 ** (len(f'{needed:.0f}') - 2)) * 10 ** (len(f'{needed:.0f}') - 2)
    return f'About {rounded:,.0f} such images'


def recommend_levels(layers, checkpoint):
    """What to do about layers that are called several times in a pass and share their running statistics.

    Args:
        layers (list[dict]): Those that training normalizes by batches: ``name``, ``relative_mu``, ``relative_sigma``,
            and ``calls``, a list of the same figures for each call.
        checkpoint (str): As the user gave it.

    Returns:
        str or None: None where there is no such layer, or each call fits the running statistics.
    """
    shifted = [
        (_size(call), number, layer)
        for layer in layers
        for number, call in enumerate(layer.get('calls') or (), 1)
        if _size(call) >= DIFFERENT
    ]
    if not shifted:
        return None
    size, number, layer = max(shifted, key=lambda found: found[0])
    names = list(dict.fromkeys(of['name'] for _, _, of in shifted))
    others = f' and {len(names) - 1} more are' if len(names) > 1 else ' is'
    command = _statistics('recollect', 'NEW_CONFIG', checkpoint, '--out', _beside(checkpoint, 'per_level'))
    return (
        f'{names[0]}{others} called several times in a pass, as heads that FPN levels share are. Training normalizes '
        'each call by itself, evaluation all of them by the same running statistics: what call '
        f'{number} of {len(layer["calls"])} of {layer["name"]} gets is {size:.2f} deviations from these, all calls '
        f'together {_size(layer):.2f}. A norm per level mends that without training: set '
        f"norm_cfg=dict(type='PerLevel', norm=dict(...), levels={len(layer['calls'])}) in that part of the config, "
        'with its norm_cfg for the dots, and recollect the statistics: '
        f'{command}'
    )


def _is_headline(key):
    return key.rpartition('/')[2] in HEADLINES


def _statistics(*arguments):
    from mmnorm.terminal import command  # so late that the names above need nothing installed

    return f'{command("statistics")} {shlex.join(arguments)}'


def _beside(checkpoint, what):
    """A file beside the checkpoint, or here where that came from a URL."""
    out = checkpoint.rpartition('/')[2] if '://' in checkpoint else checkpoint
    return f'{out.removesuffix(".pth")}_{what}.pth'


def _size(figures):
    return math.hypot(figures['relative_mu'], figures['relative_sigma'])


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
