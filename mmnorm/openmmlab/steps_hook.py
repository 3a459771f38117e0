"""The optimizer's steps, for the norms that go by them and not by forward passes."""

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict

from mmnorm.norms import count_steps
from mmnorm.statistics import unwrapped


class CountStepsHook(Hook):
    """Count the steps that the optimizer takes for CBN and MABN layers, which use the batches of the last ones.

    It is a part of every training of a model that has such layers. Of several optimizers the first one's steps count.
    """

    def before_train(self, runner):
        self._counting = count_steps(unwrapped(runner.model), first_wrapper(runner).optimizer)

    def after_train(self, runner):
        self._counting.remove()


def first_wrapper(runner) -> OptimWrapper:
    """A runner's optimizer wrapper; of several the first."""
    wrapper = runner.optim_wrapper
    return next(iter(wrapper.values())) if isinstance(wrapper, OptimWrapperDict) else wrapper
