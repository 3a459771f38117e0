"""What a trained network's BN statistics do: measured, repaired in the ways that fit its training, and judged."""

from collections import Counter
from datetime import datetime

from mmengine.dist import all_reduce, broadcast_object_list
from mmengine.registry import MODELS

from mmnorm.norms import PlaneNorm, estimate_offline
from mmnorm.openmmlab.batches import training_forward
from mmnorm.openmmlab.configs import evalnorm_config
from mmnorm.openmmlab.resampling import gain_error, resample
from mmnorm.statistics import (
    EDGES,
    INPUT,
    apply_rule,
    bn_layers,
    collect_histograms,
    collect_moments,
    domain_shift,
    estimation_shift,
    evaluating,
    feed,
    normalizing_by_batch,
    part_of,
    recollect,
    to_evalnorm,
    trained_by_batch,
    worst_channel,
)
from mmnorm.terminal import working

from .evaluation import save_network
from .recommend import CONFIDENCE, REPAIRS, headline, interval, recommend
from .record import describe_device, versions

AS_IT_IS = 'as it is'
RECOLLECT, OFFLINE, RULE = REPAIRS
HISTOGRAMS = 6  # worst layers that are drawn
HISTOGRAM_BATCHES = 10
RESAMPLINGS = 200  # of the test images; a standard error needs no more


class Diagnosis:
    """The diagnosis of one network, step by step.

    Args:
        evaluation (Evaluation): The network, its test and its training data.
        original (Config): Of the network, as the user's file has it.
        batches (int): Training batches, of each process, that repairs are computed from.

    Attributes:
        result (dict): What was found, of plain values: what the report is made of.
        repaired (dict[str, dict[str, Tensor]]): Repair to the state dict of the repaired network.
    """

    def __init__(self, evaluation, original, batches):
        self.evaluation, self.original, self.batches = evaluation, original, batches
        self.network = evaluation.network
        self.layers = bn_layers(self.network)
        self.by_batch = trained_by_batch(self.network)
        self.repaired, self._resampled = {}, {}
        self.result = dict(
            config=str(evaluation.cfg.filename),
            checkpoint=evaluation.checkpoint,
            date=datetime.now().astimezone().isoformat(timespec='seconds'),
            device=describe_device(),
            versions=versions(),
            seed=evaluation.seed,
            batches=batches,
            batch_size=evaluation.batch_size,
            metrics={},
            failed={},
            notes=evaluation.notes,
            trained_by_batch=len(self.by_batch),
            norms=dict(Counter(type(layer).__name__ for layer in self.layers.values())),
            layers=[],
            histograms=[],
            evalnorm={},
            edges=EDGES.tolist(),
        )

    def run(self):
        """Measure, repair and judge; the network is then as the last repair left it.

        Returns:
            dict: :attr:`result`.
        """
        self._measure()
        if self.by_batch:
            for repair, attempt in ((RECOLLECT, self._recollect), (OFFLINE, self._evalnorm)):
                try:
                    attempt()
                except ValueError as error:  # this network does not admit it: told, and no end of the diagnosis
                    self.result['failed'][repair] = str(error)
        self.result['headline'] = {repair: headline(values) for repair, values in self.result['metrics'].items()}
        self.result['confidence'] = self._confidence()
        self.result['recommendation'] = recommend(self.result, self.result['config'], self.result['checkpoint'])
        return self.result

    def apply(self, repair, out):
        """Write the repaired network.

        Args:
            repair (str): One of :data:`REPAIRS`, or 'recommended', where one is.
            out (Path): The checkpoint; for EvalNorm its config is written beside it.

        Returns:
            list[Path]: What was written.

        Raises:
            ValueError: This repair was not possible.
            FileExistsError: See :func:`~mmnorm.engine.save_network`.
        """
        if repair == 'recommended':
            repair = self.result['recommendation']['repair']
        if repair not in self.repaired:
            raise ValueError(
                f'{repair} cannot be applied: '
                + self.result['failed'].get(repair, 'no layer is trained by batch statistics')
            )
        note = dict(repair=repair, of=self.evaluation.checkpoint, batches=self.batches, seed=self.evaluation.seed)
        if repair == RECOLLECT:
            return save_network(self.repaired[repair], self.evaluation.loaded, out, note)
        cfg, network = self._evalnorm_files
        network.load_state_dict(self.repaired[repair])
        return save_network(network.state_dict(), self.evaluation.loaded, out, note, cfg)

    def _measure(self):
        """Metrics as it is, and the shifts of every layer: of its running statistics, and from training to test."""
        with collect_moments(self.network) as of_test:
            self._evaluate(AS_IT_IS)
        of_training = self._measure_training()
        inputs = of_training.get(INPUT)
        shifts = estimation_shift(self.network, of_test, inputs and (inputs.mean, inputs.unbiased_var))
        domains = domain_shift(self.network, of_test, of_training)
        # what is fixed in training is not estimated: there the data are all that can shift
        judged = {name: shift if name in self.by_batch else domains.get(name, shift) for name, shift in shifts.items()}
        self.result['layers'] = [
            self._describe(name, shift, domains.get(name), judged[name]) for name, shift in shifts.items()
        ]
        self.result['not_run'] = [name for name in self.layers if name not in shifts]
        self._draw_channels(judged, bool(of_training))

    def _measure_training(self):
        """Moments of training images, evaluated, of what they reach; none where they cannot be had."""
        try:
            with evaluating(self.network), collect_moments(self.network) as collected:
                self._feed('measuring training images')
        except ValueError as error:
            self.result['notes'].append(f'Training images were not measured: {error}.')
            return {}
        return {name: seen for name, seen in collected.items() if seen.batches}

    def _describe(self, name, shift, domain, judged):
        order = (judged.channel_mu.square() + judged.channel_sigma.square()).argsort(descending=True)
        return dict(
            name=name,
            type='input' if name == INPUT else type(self.layers[name]).__name__,
            channels=len(shift.mean),
            part=part_of(name),
            by_batch=name in self.by_batch,
            **shift.figures,
            domain_mu=domain and domain.relative_mu,
            domain_sigma=domain and domain.relative_sigma,
            size=judged.size,
            calls=[call.figures for call in shift.calls],
            worst_channels=[
                dict(channel=i, mu=float(judged.channel_mu[i]), sigma=float(judged.channel_sigma[i]))
                for i in order[:3].tolist()
            ],
        )

    def _draw_channels(self, judged, of_training):
        """Histograms of the worst channel of the worst layers, normalized in training and in evaluation."""
        drawable = [
            name
            for name, shift in judged.items()
            if name in self.layers and len(shift.mean) == self.layers[name].num_features
        ]
        worst = sorted(drawable, key=lambda name: -judged[name].size)
        self.channels = {name: worst_channel(judged[name], self.layers[name]) for name in worst[:HISTOGRAMS]}
        curves = {}
        if of_training and self.by_batch:
            trained = [self.layers[name] for name in self.by_batch]
            with normalizing_by_batch(self.network, trained):
                curves['training, by batch statistics'] = self._histograms()
        with evaluating(self.network):
            if of_training:
                curves['evaluation of training images'] = self._histograms()
            curves['evaluation of test images'] = self._histograms(self.evaluation.test_batches)
        self.result['histograms'] = [
            dict(
                layer=name,
                channel=channel,
                by_batch=name in self.by_batch,
                curves={title: of_layers[name] for title, of_layers in curves.items()},
            )
            for name, channel in self.channels.items()
        ]

    def _histograms(self, test_batches=None):
        with collect_histograms(self.network, self.channels) as counts:
            if test_batches:
                for batch in test_batches(HISTOGRAM_BATCHES, 'drawing channels'):
                    self.evaluation.model.test_step(batch)
            else:
                self._feed('drawing channels', HISTOGRAM_BATCHES)
        for count in counts.values():
            all_reduce(count)
        width = float(EDGES[1] - EDGES[0])
        return {name: (count / count.sum().clamp(min=1) / width).tolist() for name, count in counts.items()}

    def _recollect(self):
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            recollect(self.network, self._training_batches('recollecting statistics'), training_forward, self.by_batch)
            self._judge(RECOLLECT)
        finally:
            self.network.load_state_dict(before)

    def _evalnorm(self):
        if all(isinstance(self.layers[name], PlaneNorm) for name in self.by_batch):
            raise ValueError(
                'EvalNorm corrects plain BN; the layers that are trained by batch statistics are '
                f'{", ".join(sorted({type(self.layers[n]).__name__ for n in self.by_batch}))}'
            )
        to_evalnorm(self.network, self.by_batch)
        self._evalnorm_files = evalnorm_config(self.original, self.network, MODELS.build)  # or told before estimation
        values = estimate_offline(self.network, self._training_batches('estimating alpha and beta'), training_forward)
        with evaluating(self.network):
            of_layers = self._histograms()
        for drawn in self.result['histograms']:
            if drawn['layer'] in values:
                drawn['curves']['evaluation of training images, EvalNorm'] = of_layers[drawn['layer']]
        self._judge(OFFLINE)
        sizes = apply_rule(self.network)
        self.result['evalnorm'] = {
            name: dict(alpha=alpha, beta=beta, batch_size=sizes.get(name)) for name, (alpha, beta) in values.items()
        }
        self._judge(RULE)

    def _evaluate(self, row):
        self.result['metrics'][row] = self.evaluation.evaluate(f'evaluating {row}')
        self._resampled[row] = {}
        for key, figure in headline(self.result['metrics'][row]).items():
            if key in self.evaluation.per_image:
                with working(f'resampling {key}'):
                    of_all, values = resample(self.evaluation.per_image[key], RESAMPLINGS, self.evaluation.seed)
                if abs(of_all - figure) < 0.06:  # but for rounding; another would not be the metric that is meant
                    self._resampled[row][key] = values

    def _confidence(self):
        """Errors and intervals of the gains by the choice of test images, where metrics can be resampled by image."""
        before, errors = self._resampled[AS_IT_IS], {}
        for repair, after in self._resampled.items():
            keys = self.result['headline'][repair]
            if repair != AS_IT_IS and keys and all(key in before and key in after for key in keys):
                errors[repair] = {key: gain_error(before[key], after[key]) for key in keys}
        found = dict(images=self.evaluation.test_images, resamplings=RESAMPLINGS, confidence=CONFIDENCE, errors=errors)
        found['intervals'] = {
            repair: {key: interval(found, repair, key) for key in of_repair} for repair, of_repair in errors.items()
        }
        if len(errors) < len(self._resampled) - 1:
            self.result['notes'].append(
                'Not every gain has an interval: this metric, or one of figures that are missing, is not resampled by '
                'image, so the test images alone may be what decides.'
            )
        shared = [found]
        broadcast_object_list(shared)
        return shared[0]

    def _judge(self, repair):
        self._evaluate(repair)
        self.repaired[repair] = {name: value.clone() for name, value in self.network.state_dict().items()}

    def _training_batches(self, what, number=None):
        return self.evaluation.training_batches(number or self.batches, what)

    def _feed(self, what, number=None):
        feed(self.network, self._training_batches(what, number), training_forward, f'for {what}')
