"""What a diagnosis comes to."""

import math

import numpy as np
import pytest

from mmnorm.engine.recommend import headline, interval, recommend, recommend_levels
from mmnorm.terminal import command


def layer(name, by_batch=True, relative=0.1, domain=0.05):
    return dict(
        name=name,
        type='BatchNorm2d',
        by_batch=by_batch,
        relative_mu=relative,
        relative_sigma=relative,
        domain_mu=domain,
        domain_sigma=domain,
    )


def advise(headlines, layers=None, **more):
    layers = layers or [layer('a'), layer('b')]
    return recommend(dict(layers=layers, headline=headlines, failed={}, **more), 'c.py', 'dir with space/k.pth')


def test_headlines_are_in_percent():
    assert headline({'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5, 'data_time': 3.0}) == {'coco/bbox_mAP': 25}
    assert headline({'mIoU': np.float32(30.5), 'aAcc': np.float32(90)}) == {'mIoU': 30.5}  # as mmseg has them
    assert headline({'lvis/bbox_AP': 0.25, 'lvis/bbox_AP50': 0.5}) == {'lvis/bbox_AP': 25}
    assert headline({'accuracy/top1': 76.5, 'accuracy/top5': 93.0}) == {'accuracy/top1': 76.5}  # as mmpretrain
    assert headline({'multi-label/mAP': 80.0}) == {'multi-label/mAP': 80}
    assert headline({'own': 0.5, 'table': 'x'}) == {'own': 0.5}


def test_the_best_repair_is_recommended_with_its_command():
    advice = advise({'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 31.0}, 'evalnorm_rule': {'mIoU': 30.5}})
    assert advice['repair'] == 'recollect'
    assert advice['sentence'] == 'Recollect the running statistics: mIoU 30.0 to 31.0.'
    assert advice['command'] == (
        f"{command('statistics')} recollect c.py 'dir with space/k.pth' --out 'dir with space/k_recollect.pth'"
    )
    assert advise({'as it is': {'mIoU': 30.0}, 'evalnorm_rule': {'mIoU': 31.0}})['command'].startswith(
        f'{command("statistics")} evalnorm --mode rule c.py'
    )


def test_shared_layers_are_told_of_a_norm_per_level():
    calls = [dict(relative_mu=0.0, relative_sigma=0.1), dict(relative_mu=1.5, relative_sigma=2.0)]
    layers = [layer('a', relative=0), dict(layer('b', relative=0), calls=calls), dict(layer('c'), calls=calls[:1] * 2)]
    metrics = {'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 30.0}}
    text = advise(metrics, layers)['levels']
    assert text.startswith('b is called several times in a pass')
    assert 'call 2 of 2 of b gets is 2.50 deviations from these, all calls together 0.00' in text
    assert "norm_cfg=dict(type='PerLevel', norm=dict(...), levels=2)" in text
    assert text.endswith("recollect NEW_CONFIG 'dir with space/k.pth' --out 'dir with space/k_per_level.pth'")
    assert advise(metrics, layers[::2])['levels'] is None
    # statistics that were fixed in training are those that each call was trained with
    assert advise(metrics, [dict(layers[1], by_batch=False)])['levels'] is None
    both = [dict(row, name=name) for row, name in ((layers[1], 'b'), (layers[1], 'd'))]
    assert recommend_levels(both, 'k.pth').startswith('b and 1 more are called')


def test_small_gains_are_none():
    advice = advise({'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 30.2}, 'evalnorm_rule': {'mIoU': 20.0}})
    assert advice['repair'] is None and advice['command'] is None
    assert advice['sentence'].startswith('Leave it as it is: no repair gains 0.3 points (the best, to recollect')


def test_several_headlines_count_equally():
    metrics = {
        'as it is': {'bbox_mAP': 30.0, 'segm_mAP': 30.0, 'APl': math.nan},
        'recollect': {'bbox_mAP': 31.0, 'segm_mAP': 28.0, 'APl': math.nan},
    }
    assert advise(metrics)['repair'] is None


@pytest.mark.parametrize('domain, finding', [(0.1, 'it is the data that differ'), (0.02, 'are off by more')])
def test_finding_tells_estimation_from_data(domain, finding):
    metrics = {'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 31.0}}
    assert finding in advise(metrics, [layer('a', domain=domain), layer('b', by_batch=False)])['finding']


@pytest.mark.parametrize(
    'domain, says', [(0.1, 'training and test images look alike'), (0.5, 'train on images more like')]
)
def test_fixed_statistics_have_no_repair(domain, says):
    advice = advise({'as it is': {'mIoU': 30.0}}, [layer('a', by_batch=False, domain=domain)])
    assert advice['repair'] is None and says in advice['sentence'] and f'{domain:.2f}' in advice['sentence']
    assert 'norm_eval=True' in advice['finding'] and 'EvalNorm has no batch size' in advice['finding']


def test_a_network_without_detections_has_no_figures():
    assert advise({'as it is': {}, 'recollect': {'bbox_mAP': 30.0}})['repair'] == 'recollect'
    assert advise({'as it is': {'bbox_mAP': 30.0}, 'recollect': {}})['repair'] is None


def test_the_command_repeats_what_was_judged():
    command = advise(
        {'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 31.0}},
        options=['--batch-size', '16', '--cfg-options', 'a=1'],
    )['command']
    assert '--batch-size 16 --cfg-options a=1 --out' in command
    result = dict(layers=[layer('a')], headline={'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 31.0}}, failed={})
    assert recommend(result, 'c.py', 'https://x.org/k.pth')['command'].endswith('--out k_recollect.pth')


def test_when_no_repair_was_possible():
    assert 'no repair could be tried' in advise({'as it is': {'mIoU': 30.0}})['sentence']


def judged(gains, error, images=500, base=30.0, keys=('mIoU',)):
    """What is said of repairs with these gains (by repair), each of the same standard error, in points."""
    headlines = {'as it is': dict.fromkeys(keys, base)}
    headlines |= {repair: dict.fromkeys(keys, base + gain) for repair, gain in gains.items()}
    errors = {repair: dict.fromkeys(keys, error) for repair in gains} if error is not None else {}
    return advise(headlines, confidence=dict(images=images, errors=errors))


@pytest.mark.parametrize(
    'gains, error, options, verdict, says',
    [
        # more than noise
        ({'recollect': 1.0}, 0.3, {}, 'repair', 'mIoU 30.0 to 31.0, +1.0 ± 0.6 points beyond what other test images'),
        ({'recollect': 1.0}, 0.3, dict(images=30), 'repair', 'Recollect the running statistics: '),
        ({'recollect': 1.0}, None, {}, 'repair', 'Recollect the running statistics: mIoU 30.0 to 31.0.'),
        # within it
        ({'recollect': 1.0}, 0.6, {}, 'leave', 'is within noise (+1.0 ± 1.2 points)'),
        ({'recollect': 1.0}, 0.6, {}, 'leave', 'About 700 such images would tell.'),
        # no gain
        ({'recollect': 0.1}, 0.1, {}, 'leave', '(the best, to recollect the running statistics, +0.1 ± 0.2)'),
        ({'recollect': -3.0}, 1.0, {}, 'leave', 'no repair gains 0.3 points'),
        ({'recollect': 0.1}, 1.0, {}, 'none', 'a gain of 1 is not ruled out. About 2,400 such images would tell.'),
        # the metric cannot judge
        ({'recollect': 5.0}, 0.1, dict(images=8), 'none', 'No verdict: by 8 test images a gain cannot be told'),
        ({'recollect': 0.0, 'evalnorm_rule': 0.0}, 0.0, dict(base=0.0), 'none', 'No verdict: mIoU is 0 in every row'),
        ({'recollect': 0.0}, 0.0, dict(base=0.0, images=8), 'none', 'Needed are weights that were trained for longer'),
        ({'recollect': 0.1}, 0.1, dict(base=0.8), 'none', 'No verdict: mIoU is below 1 in every row'),
        ({'recollect': 0.1}, 0.1, dict(base=0.8, images=8), 'none', 'by 8 test images a gain cannot be told'),
        ({'recollect': 0.0}, 0.0, dict(base=math.nan), 'none', 'No verdict: mIoU is 0 in every row'),
        ({'recollect': 5.0}, 0.5, dict(base=0.0), 'repair', 'mIoU 0.0 to 5.0'),
        ({'recollect': 0.0}, 0.0, dict(base=0.0, keys=('box', 'mask')), 'none', 'box and mask is 0'),
    ],
)  # fmt: skip
def test_verdicts_follow_the_evidence(gains, error, options, verdict, says):
    advice = judged(gains, error, **options)
    assert advice['verdict'] == verdict and says in advice['sentence'], advice['sentence']
    assert (advice['repair'] is not None) == (advice['command'] is not None) == (verdict == 'repair')


def test_a_clear_gain_goes_before_a_larger_one_within_noise():
    headlines = {'as it is': {'mIoU': 30.0}, 'recollect': {'mIoU': 32.0}, 'evalnorm_rule': {'mIoU': 31.5}}
    errors = {'recollect': {'mIoU': 1.5}, 'evalnorm_rule': {'mIoU': 0.2}}
    assert advise(headlines, confidence=dict(images=500, errors=errors))['repair'] == 'evalnorm_rule'


def test_intervals_hold_for_all_repairs_at_once():
    one, three = (dict(errors={repair: dict(a=1.0, b=2.0) for repair in 'xyz'[:number]}) for number in (1, 3))
    assert interval(one, 'x', 'a') == pytest.approx(1.96, abs=0.001)
    assert interval(three, 'x', 'a') == pytest.approx(2.394, abs=0.001)  # at 1 - 0.05 / 3
    assert interval(one, 'x') == pytest.approx(1.5 * 1.96, abs=0.001)
    assert interval(dict(errors=dict(x=dict(a=math.nan))), 'x') is None
    assert interval(one, 'y') is interval(one, 'x', 'c') is interval({}, 'x') is None
