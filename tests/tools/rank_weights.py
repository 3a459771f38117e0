"""A hook for tests: each rank leaves its weights and the images that it saw in the work dir."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SaveRankWeights(Hook):
    def before_train(self, runner):
        self.images = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.images += [sample.img_path for sample in data_batch['data_samples']]

    def after_train(self, runner):
        torch.save(
            dict(images=self.images, weights=runner.model.state_dict()), Path(runner.work_dir, f'rank{runner.rank}.pth')
        )
